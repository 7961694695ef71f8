"""The training code: datasets, features, models, training, evaluation."""
