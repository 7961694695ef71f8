"""Metrics, baselines, heatmaps and the faithfulness of the attention."""
