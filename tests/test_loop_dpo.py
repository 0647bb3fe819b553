"""The trained loss against its formula and against TRL's own, on the installed TRL."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loop_training import BASE, make_spec, perturb, prepared, save_models, written
from test_parity_trl import PLAIN, conversational, relative, tokenized, trainer_for
from transformers import AutoModelForCausalLM, AutoTokenizer

from congrad_cli.errors import InputError, NumericsError
from congrad_cli.loop import dpo, dpo_model
from congrad_cli.loop.dpo_events import Reporter, Stop
from congrad_cli.loop.dpo_trainer import load_pairs
from congrad_cli.loop.settings import LossSection
from congrad_cli.settings import ConsensusSettings
from congrad_cli.sketch.tokens import TokenizedPair
from congrad_cli.weights import loss_weights

LP = LossSection(name="lp-dpo", beta=0.2, length_penalty=0.05)
DPO = LossSection(name="dpo", beta=0.1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Folders of a policy and of another reference."""
    sample_data = Path(__file__).parent.parent / "sample_data"
    return save_models(tmp_path_factory.mktemp("models"), sample_data)


def log_prob(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """log pi(answer | prompt) through the model's ordinary logits."""
    ids = torch.tensor([prompt + answer])
    logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
    picked = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])
    return picked.sum()


def difference(model: Any, pair: TokenizedPair) -> torch.Tensor:
    """log pi(chosen) - log pi(rejected)."""
    chosen, rejected = (log_prob(model, pair.prompt, side)
                        for side in (pair.chosen, pair.rejected))  # fmt: skip
    return chosen - rejected


def flat_gradient(value: torch.Tensor, model: Any) -> torch.Tensor:
    """The derivative by all that learns, as one vector."""
    learns = [weight for weight in model.parameters() if weight.requires_grad]
    parts = torch.autograd.grad(value, learns, allow_unused=True)
    return torch.cat([
        (torch.zeros_like(weight) if part is None else part).flatten().double()
        for weight, part in zip(learns, parts, strict=True)
    ])


def gap(pair: TokenizedPair) -> int:
    """|y_w| - |y_l|, after truncation."""
    return len(pair.chosen) - len(pair.rejected)


def trained_loss(trainer: Any, rows: list[int]) -> torch.Tensor:
    """What the trainer minimises on these rows."""
    batch = trainer.data_collator([trainer.train_dataset[row] for row in rows])
    trainer.model.train()
    loss: torch.Tensor = trainer.compute_loss(trainer.model, batch)
    return loss


@pytest.mark.parametrize(
    ("rank", "precompute", "other", "form"),
    [(0, True, False, "texts"), (0, False, False, "texts"), (4, True, False, "messages"),
     (4, False, False, "texts"), (0, True, True, "messages"), (4, False, True, "texts")],
)  # fmt: skip
def test_lp_dpo_is_its_formula(
    rank: int, precompute: bool, other: bool, form: str, models: tuple[str, str], tmp_path: Path
) -> None:
    """Loss and gradient of a batch, some of whose answers are cut at max_length."""
    rows = PLAIN if form == "texts" else [conversational(row) for row in PLAIN]
    against = models[1] if other else models[0]
    spec = make_spec(tmp_path / "out", models[0], against, LP, rows, lora_rank=rank,
                     precompute_reference=precompute)  # fmt: skip
    trainer = prepared(spec)
    perturb(trainer.model, 0.2)
    pairs = tokenized(rows, AutoTokenizer.from_pretrained(models[0]))
    reference = AutoModelForCausalLM.from_pretrained(against, dtype=torch.float32).eval()

    terms = []
    for pair in pairs:
        with torch.no_grad():
            before = difference(reference, pair)
        delta = difference(trainer.model, pair) - before
        assert abs(float(delta.detach())) > 0.01, "Delta must matter"
        inside = LP.beta * delta + LP.length_penalty * gap(pair)
        terms.append(-torch.nn.functional.logsigmoid(inside))
    assert len({gap(pair) for pair in pairs}) > 2 and any(len(pair.prompt) + len(pair.chosen)
               == BASE.max_length for pair in pairs)  # fmt: skip
    formula = torch.stack(terms).mean()
    loss = trained_loss(trainer, list(range(len(rows))))
    assert float(loss.detach()) == pytest.approx(float(formula.detach()), rel=1e-4)
    truth = flat_gradient(formula, trainer.model)
    assert relative(flat_gradient(loss, trainer.model), truth) < 1e-4


def test_a_model_of_experts_has_no_other_loss(tmp_path: Path, sample_data: Path) -> None:
    """Its load-balancing term is no part of what pairs are chosen by."""
    folder = save_models(tmp_path, sample_data, "mixtral")[0]
    trainer = prepared(make_spec(tmp_path / "out", folder, loss=LP))
    pairs = tokenized(PLAIN, AutoTokenizer.from_pretrained(folder))
    terms = [np.logaddexp(0.0, -LP.length_penalty * gap(pair)) for pair in pairs]
    loss = float(trained_loss(trainer, [0, 1, 2, 3]).detach())
    assert loss == pytest.approx(np.mean(terms), rel=1e-4)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("loss", [LP, DPO], ids=["lp-dpo", "dpo"])
def test_the_weights_that_choose_pairs_are_those_of_the_trained_loss(
    loss: LossSection, rank: int, models: tuple[str, str], tmp_path: Path
) -> None:
    """-dL_i/dtheta = w_i u_i, with w_i as ``consensus`` and ``filter`` compute it."""
    trainer = prepared(make_spec(tmp_path / "out", models[0], loss=loss, lora_rank=rank))
    perturb(trainer.model, 0.2)
    reference = AutoModelForCausalLM.from_pretrained(models[0], dtype=torch.float32).eval()
    pairs = tokenized(PLAIN, AutoTokenizer.from_pretrained(models[0]))
    settings = ConsensusSettings(
        loss=loss.name, beta=loss.beta, length_penalty=loss.length_penalty
    )
    for row, pair in enumerate(pairs):
        value = difference(trainer.model, pair)
        with torch.no_grad():
            margin = float(value.detach() - difference(reference, pair))
        (weight,) = loss_weights(np.array([margin]), np.array([float(gap(pair))]), settings)
        expected = -weight * flat_gradient(value, trainer.model)
        gradient = flat_gradient(trained_loss(trainer, [row]), trainer.model)
        assert relative(gradient, expected) < 1e-4


def test_another_length_penalty_is_not_served_from_the_cache(
    models: tuple[str, str], tmp_path: Path
) -> None:
    """The reference's log-probabilities are read from the cache, and shifted after that."""
    losses = []
    caches = []
    for alpha in (0.0, 0.1):
        loss = replace(LP, length_penalty=alpha)
        trainer = prepared(make_spec(tmp_path / "out", models[0], models[1], loss))
        losses.append(float(trained_loss(trainer, [0, 1]).detach()))
        caches.append({path: path.stat().st_mtime_ns
                       for path in (tmp_path / "out" / "cache").rglob("*.arrow")})  # fmt: skip
    assert caches[0] and caches[0] == caches[1], "the second training must find the first's cache"
    pairs = tokenized(PLAIN, AutoTokenizer.from_pretrained(models[0]))[:2]
    policy, reference = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
                         for path in models)  # fmt: skip
    with torch.no_grad():
        inside = [LP.beta * (difference(policy, pair) - difference(reference, pair))
                  for pair in pairs]  # fmt: skip
    for alpha, loss in zip((0.0, 0.1), losses, strict=True):
        terms = [-torch.nn.functional.logsigmoid(value + alpha * gap(pair))
                 for value, pair in zip(inside, pairs, strict=True)]  # fmt: skip
        assert loss == pytest.approx(float(torch.stack(terms).mean()), rel=1e-4)


def test_plain_dpo_is_trls_own(models: tuple[str, str], tmp_path: Path) -> None:
    """The same weights after two steps of stock DPOTrainer, on other pairs each."""
    rows = [*PLAIN, *({**row, "prompt": f"{row['prompt']} ..."} for row in PLAIN)]
    spec = make_spec(tmp_path / "out", models[0], loss=DPO, rows=rows, max_steps=2)
    ours = prepared(spec)
    ours.train()
    theirs = trainer_for(
        Path(models[0]), rows, tmp_path / "trl", max_steps=2, learning_rate=BASE.learning_rate,
        lr_scheduler_type="constant", gradient_accumulation_steps=4, seed=spec.seed,
        data_seed=spec.seed, save_strategy="no",
    )  # fmt: skip
    theirs.train()
    start = dict(AutoModelForCausalLM.from_pretrained(models[0]).named_parameters())
    own = dict(ours.model.named_parameters())
    for name, weight in theirs.model.named_parameters():
        assert float((weight - start[name]).detach().norm()) > 0
        torch.testing.assert_close(own[name], weight, rtol=1e-3, atol=1e-4)


def test_a_merged_folder_says_what_the_adapter_model_says(
    models: tuple[str, str], tmp_path: Path
) -> None:
    spec = make_spec(tmp_path / "out", models[0], lora_rank=4)
    written(spec)
    trainer, tokenizer = dpo.prepare(spec)
    perturb(trainer.model, 0.5)
    dpo.finish(spec, trainer, tokenizer)
    ids = torch.tensor([list(range(5, 30))])
    merged = AutoModelForCausalLM.from_pretrained(spec.output / "model", dtype=torch.float32)
    before = AutoModelForCausalLM.from_pretrained(models[0], dtype=torch.float32)
    with torch.no_grad():
        expected = trainer.model.eval()(input_ids=ids).logits
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(before(input_ids=ids).logits, expected, atol=1e-2)
    names = {path.name for path in (spec.output / "model").iterdir()}
    assert not any("adapter" in name for name in names)
    assert (spec.output / "adapter" / "adapter_model.safetensors").is_file()
    layers = {name.rsplit(".lora_A")[0] for name, _ in trainer.model.named_parameters()
              if "lora_A" in name}  # fmt: skip
    assert len(layers) == 14 and not any("lm_head" in name for name in layers)


def test_what_rounding_loses_is_measured(models: tuple[str, str], tmp_path: Path) -> None:
    """All of a change below the last bit, next to nothing of a large one, nothing in float32."""
    spec = make_spec(tmp_path / "out", models[0])
    source = dpo_model.policy_source(spec)
    tokenizer = dpo_model.load_tokenizer(spec, PLAIN)

    def lost(change: float, target: str, dtype: torch.dtype = torch.bfloat16) -> float:
        model = dpo_model.load_model(source, torch.float32)
        start = {name: weight.bfloat16().float() for name, weight in model.state_dict().items()}
        model.load_state_dict(start)
        state = {name: weight * (1 + change) for name, weight in start.items()}
        return dpo_model.write_model(model, state, dtype, tokenizer, tmp_path / target)

    assert lost(1e-5, "a") == pytest.approx(1.0)
    assert lost(1.0, "b") < 1e-6  # doubling is exact
    assert 0.0 < lost(0.3, "c") < 0.02
    assert lost(1e-5, "d", torch.float32) == 0.0
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "c")
    assert kept.dtype == torch.bfloat16


def test_dropout_is_off_wherever_it_is_written(tmp_path: Path, models: tuple[str, str]) -> None:
    """Attention reads a number from the config, which TRL leaves as it is."""
    changed = Path(shutil.copytree(models[0], tmp_path / "dropping"))
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    source = dpo_model.policy_source(make_spec(tmp_path / "out", str(changed)))
    model = dpo_model.load_model(source, torch.float32).train()
    ids = torch.tensor([list(range(5, 30))])
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert model.config.attention_dropout == 0.5, "the folder that is written keeps its config"


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_of_adapters_is_on_where_it_is_asked_for(
    dropout: float, models: tuple[str, str], tmp_path: Path
) -> None:
    spec = make_spec(tmp_path / "out", models[0], lora_rank=4, lora_dropout=dropout)
    trainer = prepared(spec)
    perturb(trainer.model, 0.5)
    one, other = (trained_loss(trainer, [0, 1]).detach() for _ in range(2))
    assert torch.equal(one, other) == (dropout == 0.0)


def test_pairs_are_found_in_a_folder_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    spec = make_spec(tmp_path / "round [1] of {2}*" / "out", "model", rows=PLAIN)
    written(spec)
    assert len(load_pairs(spec.output / "pairs.jsonl", tmp_path / "cache")) == len(PLAIN)


def test_a_training_is_never_warm_up_alone(models: tuple[str, str], tmp_path: Path) -> None:
    """The first step of a warm-up has the rate 0; it may not be the only one."""
    spec = make_spec(tmp_path / "out", models[0], warmup_ratio=0.4, schedule="linear")
    trainer = prepared(spec)

    def rates(count: int) -> list[float]:
        trainer.lr_scheduler = None
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = trainer.create_scheduler(count, optimizer)
        found = []
        for _ in range(count):
            found.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        return found

    assert rates(1) == [1.0]
    assert rates(2) == [1.0, 0.5]  # 0.8 steps of warm-up are none
    assert rates(5) == pytest.approx([0.0, 0.5, 1.0, 2 / 3, 1 / 3])
    trainer._warmup_ratio = 1.0
    assert rates(1) == [1.0]
    assert rates(3) == [0.0, 0.5, 1.0]


def test_a_diverging_training_is_stopped(models: tuple[str, str], tmp_path: Path) -> None:
    spec = make_spec(tmp_path / "out", models[0], learning_rate=1e30)
    trainer = prepared(spec)
    trainer.add_callback(Reporter(4, tmp_path / "metrics.jsonl", Stop()))
    with pytest.raises(NumericsError, match="diverged"):
        dpo.steps(trainer, None)


def test_prompts_without_room_for_an_answer_are_left_out_or_refused(
    models: tuple[str, str], tmp_path: Path
) -> None:
    long = {"prompt": "word " * 80, "chosen": " a", "rejected": " b"}
    trainer = prepared(make_spec(tmp_path / "some", models[0], rows=[*PLAIN, long]))
    assert len(trainer.train_dataset) == len(PLAIN)
    with pytest.raises(InputError, match="prompts of all 2 pairs"):
        prepared(make_spec(tmp_path / "all", models[0], rows=[long, long]))


@pytest.mark.parametrize("rank", [0, 4])
def test_half_precision_and_checkpointing_give_nearly_the_same_gradient(
    rank: int, models: tuple[str, str], tmp_path: Path
) -> None:
    gradients = []
    for name, more in (("a", {}), ("b", {"bf16": True, "gradient_checkpointing": True})):
        spec = make_spec(tmp_path / name, models[0], models[1], LP, lora_rank=rank, **more)
        trainer = prepared(spec)
        perturb(trainer.model, 0.2)
        with trainer.compute_loss_context_manager():
            loss = trained_loss(trainer, [0, 1, 2])
        gradients.append(flat_gradient(loss, trainer.model))
    cosine = float(torch.cosine_similarity(gradients[0], gradients[1], dim=0))
    assert 0.995 < cosine < 1.0
