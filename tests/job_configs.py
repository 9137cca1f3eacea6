"""A config of every job, as a test may change it."""

from pathlib import Path
from typing import Any

from jobs import (
    align,
    collect_demos,
    collect_play,
    compare,
    cut_crops,
    evaluate,
    inspect_dataset,
    pretrain,
    pretrain_prior,
    probe,
    saliency,
    sweep,
)
from jobs.import_dataset import ImportConfig
from jobs.pipeline import PipelineConfig
from tap_ray.exporting.settings import ExportConfig
from tap_ray.pretrain.settings import LabelConfig
from tap_ray.serving.settings import ServeConfig

HERE = Path("x")
CONFIGS: dict[str, Any] = {
    "align": align.AlignJobConfig(demos=HERE, init="scratch"),
    "collect_demos": collect_demos.DemosJobConfig(),
    "collect_play": collect_play.PlayJobConfig(),
    "compare": compare.CompareConfig(runs=(HERE,)),
    "cut_crops": cut_crops.CropsConfig(data=HERE),
    "import_dataset": ImportConfig(source=HERE, mapping=HERE, out=HERE),
    "export_dataset": ExportConfig(data=HERE, out=HERE),
    "label": LabelConfig(policy=HERE, data=HERE, out=HERE),
    "inspect_dataset": inspect_dataset.InspectConfig(data=HERE),
    "evaluate": evaluate.EvaluateConfig(policy="random"),
    "pretrain": pretrain.PretrainConfig(data=("x",)),
    "pretrain_prior": pretrain_prior.PriorJobConfig(data=("x",)),
    "probe": probe.ProbeConfig(policy=HERE, data=HERE),
    "saliency": saliency.SaliencyConfig(policy=(HERE,)),
    "serve": ServeConfig(policy=HERE),
    "sweep": sweep.SweepJobConfig(sweep=HERE),
    "pipeline": PipelineConfig(),
}
