"""Presets by name: every value that is not a default has a source, and a printed config gives the same run again."""

import json
import re
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from tap_ray import bounds, presets
from tap_ray.align.demos import resolve_policy
from tap_ray.command_line import Offers, parse
from tap_ray.config import digest, to_dict
from tap_ray.errors import ConfigError
from tap_ray.job import run_job
from tap_ray.models.known_vlms import KNOWN, QWEN2_5_VL_3B, QWEN3_VL_2B, SMOLVLM2_500M, known_config
from tap_ray.settings import AlignJobConfig, PretrainConfig, PriorJobConfig, made_by

HERE = Path("x")
JOBS: dict[str, tuple[type, dict[str, Any], dict[str, Any]]] = {
    "pretrain": (PretrainConfig, presets.PRETRAIN, {}),
    "align": (AlignJobConfig, presets.ALIGN, {"demos": HERE, "init": "stage_1"}),
    "pretrain_prior": (PriorJobConfig, presets.PRIOR, {"data": ("x",)}),
}
ALL = [(job, name) for job, (_, job_presets, _) in JOBS.items() for name in job_presets]
NEEDS = {"pretrain": ["--data", "x"], "align": ["--demos", "x", "--init", "y"], "pretrain_prior": ["--data", "x"]}


def leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every value of a config by its field, e.g. "train.lr"."""
    found: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        found |= leaves(value, f"{prefix}{field.name}.") if is_dataclass(value) else {f"{prefix}{field.name}": value}
    return found


def parsed(job: str, *words: str):
    cls, job_presets, _ = JOBS[job]
    return parse(run_job, cls, list(words), Offers(presets=job_presets))


@pytest.mark.parametrize(("job", "name"), ALL)
def test_every_value_that_is_no_default_has_a_source(job: str, name: str):
    cls, job_presets, needs = JOBS[job]
    required = {key: value for key, value in needs.items() if (job, name, key) != ("align", "action_prior_2b", "init")}
    preset = job_presets[name]
    made, usual = preset.make(**required), cls(**needs)
    bounds.check(made)
    changed = {key for key, value in leaves(made).items() if value != leaves(usual)[key]}
    assert changed == set(preset.sources) - {""}
    assert all(len(source) > 8 for source in preset.sources.values())


def test_the_papers_numbers():
    for name in ("tap_smolvlm", "tap_qwen2_5_vl_3b", "tap_qwen2_5_vl_3b_fast"):
        for job in ("pretrain", "align"):
            _, job_presets, needs = JOBS[job]
            config = job_presets[name].make(**needs)
            train = config.train
            assert train.batch_size * config.workers.num_workers == 128
            assert (train.steps, train.lr, train.weight_decay, train.betas) == (100_000, 5e-5, 0.05, (0.9, 0.999))
            assert (train.clip, train.warmup_fraction, train.bf16) == (1.0, 0.05, "on")
            assert config.policy.head == ("tokens" if name.endswith("fast") else "regression")
    prior = presets.action_prior_2b_prior(data=("x",)).prior
    aligned = presets.action_prior_2b_align(demos=HERE)
    assert (prior.chunk, prior.encoder, aligned.align.prior_steps, aligned.init) == (
        15,
        "state_action",
        5000,
        "scratch",
    )
    assert aligned.policy.prior == prior


@pytest.mark.parametrize("name", [name for name in presets.PRETRAIN if name in presets.ALIGN])
def test_stage_2_fits_on_stage_1(name: str):
    stage_1 = presets.PRETRAIN[name].make()
    stage_2 = presets.ALIGN[name].make(demos=HERE, init="x")
    taken = resolve_policy(stage_1.policy, stage_2.policy)
    assert taken.vlm == stage_2.policy.vlm
    assert taken.head == stage_1.policy.head


@pytest.mark.parametrize(("job", "name"), ALL)
def test_a_printed_config_gives_the_same_run(job: str, name: str, tmp_path: Path):
    config, text = parsed(job, "--preset", name, *NEEDS[job], "--steps", "77", "--print-config")
    assert text is not None
    (tmp_path / "printed.yaml").write_text(text())
    (tmp_path / "printed.json").write_text(text())
    for file in ("printed.yaml", "printed.json"):
        again, nothing = parsed(job, "--config", str(tmp_path / file))
        assert nothing is None
        assert again == config
        assert digest(made_by(again).identity) == digest(made_by(config).identity)
    assert config.train.steps == 77
    assert digest(made_by(config).identity) != digest(made_by(parsed(job, "--preset", name, *NEEDS[job])[0]).identity)


def test_printing_starts_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def main(config: PretrainConfig) -> Path:
        raise AssertionError("it was started")

    monkeypatch.setattr(sys, "argv", ["job", "--preset=tap_smolvlm", "--print-config", "--lr", "0.5"])
    run_job(main, PretrainConfig, Offers(presets=presets.PRETRAIN))
    printed = json.loads(capsys.readouterr().out)
    usual = to_dict(presets.tap_smolvlm_pretrain())
    assert printed == usual | {"train": usual["train"] | {"lr": 0.5}}
    monkeypatch.setattr(sys, "argv", ["job", "--lr", "-1", "--print-config"])
    with pytest.raises(SystemExit, match="2"):
        run_job(main, PretrainConfig, Offers(presets=presets.PRETRAIN))
    assert "--lr must be more than 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--preset", "tap_nano", "--config", "x"), r"^--config and --preset both give the whole config\. Keep one"),
        (("--preset", "tap_nono"), r"^Unknown preset 'tap_nono'\. Did you mean 'tap_nano'\?"),
        (("--preset",), r"^--preset needs a name: --preset NAME\.$"),
        (("--preset", "--lr", "1"), r"^--preset needs a name"),
        (("--preset", "tap_nano", "--preset", "tap_nano"), r"^--preset is given twice"),
        (("--plan",), r"^--plan is for jobs that train"),
    ],
)
def test_what_excludes_what(words: tuple[str, ...], message: str):
    with pytest.raises(ConfigError, match=message):
        parsed("pretrain", *words)
    with pytest.raises(ConfigError, match=r"^Unknown preset 'x'\. This job has no presets\.$"):
        parse(run_job, PretrainConfig, ["--preset", "x"], Offers())


PUBLISHED = {QWEN2_5_VL_3B: 3_754_622_976, QWEN3_VL_2B: 2_127_532_032, SMOLVLM2_500M: 507_482_304}
"""Parameters as the hub states them for the published safetensors files."""


@pytest.mark.parametrize("name", KNOWN)
def test_the_known_models_have_as_many_parameters_as_was_published(name: str):
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(known_config(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


def test_the_page_names_the_presets_of_each_job():
    page = (Path(__file__).parents[1] / "docs/how-to/presets.md").read_text()
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `")]
    documented = {name.strip(" `"): {job.split()[0] for job in jobs.split(",")} for name, jobs in rows}
    assert documented == {
        name: {job for job, (_, job_presets, _) in JOBS.items() if name in job_presets} for _, name in ALL
    }
    shown = re.findall(r"jobs\.(\w+) --preset (\w+)", page)
    assert shown
    assert set(shown) <= set(ALL)
