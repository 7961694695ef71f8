"""Keep experiment trackers from recording a rehearsal: each of them reads a variable that switches it off.

MLflow has none. Its MLFLOW_TRACKING_URI could lead to a folder, but then models could not be loaded from its registry.
Offline modes of model hubs (HF_HUB_OFFLINE) are not set: they would stop downloads, which the program may need.
"""

from __future__ import annotations

from typing import Dict, Mapping

from remote.contract.run_record import JobRecord

OFF: Mapping[str, str] = {
    # Weights & Biases, "Environment variables": `disabled` makes no run and no network connection.
    "WANDB_MODE": "disabled",
    # Comet: `comet_ml.start` then writes to .cometml-runs/. COMET_MODE is its deprecated predecessor (both in the
    # docstring of transformers.integrations.CometCallback.setup).
    "COMET_START_ONLINE": "0",
    # Neptune, "Environment variables": both clients (neptune, neptune-scale) know `offline`, which writes to .neptune/.
    "NEPTUNE_MODE": "offline",
    # ClearML, "Task", section "Offline Mode": a session is written to its cache instead.
    "CLEARML_OFFLINE_MODE": "1",
    # SwanLab, "swanlab disabled".
    "SWANLAB_MODE": "disabled",
}


def switched_off(job: JobRecord, secrets: Mapping[str, str]) -> Dict[str, str]:
    """Return the variables for the rehearsal of a job, without those that it sets itself; none for a run."""
    if not job.is_rehearsal:
        return {}
    return {name: value for name, value in OFF.items() if name not in job.env and name not in secrets}
