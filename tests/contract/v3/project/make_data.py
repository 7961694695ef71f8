import sys, pathlib
for n in range(2):
    pathlib.Path(sys.argv[1], f"part-{n}.txt").write_text(f"part {n}\n")
