# a small character-level model, good for debugging on a laptop
out_dir = "out-char"
dataset = "char"
eval_interval = 50
eval_iters = 5
log_interval = 5
batch_size = 16
block_size = 32
n_layer = 2
n_head = 2
n_embd = 64
max_iters = 4000
learning_rate = 1e-3
