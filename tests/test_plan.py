"""`sadm plan` counts what it says it counts, and a rehearsal is no pretence."""

import gzip
import json
import re

import pytest
import torch
from torch import nn

from sadm import cli, doctor, plan, training
from sadm import experiments as ex
from sadm.data import root


@pytest.fixture
def tiny(monkeypatch):
    "A network whose operations can be counted by hand: one convolution."
    class OneConv(nn.Module):
        label_dim = 0
        def __init__(self, side, channels, **more):
            super().__init__()
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        def forward(self, x, noise_label, labels=None): return self.conv(x)
    monkeypatch.setitem(ex.NETWORKS, "one_conv", OneConv)
    return ex.complete(dict(network="one_conv", network_kwargs={}, phases=[["sg", 1], ["sat", 1]], encoder="small_cnn", batch_size=4))


SHAPE = (3, 16, 16)


def test_one_convolution_as_counted_by_hand(tiny):
    forward = 2 * 16 * 16 * 3 * 3 * 9  # a multiplication and an addition for each of 27 inputs of 3 outputs at 256 pixels
    cost = plan.network_cost("one_conv", "{}", "edm", SHAPE)
    assert cost["forward"] == forward
    assert cost["step"] == 2 * forward  # back to the weights; the noised image wants no gradient
    assert plan.step_flops(tiny, "plain", SHAPE) == 4 * 2 * forward
    assert doctor.parameter_counts(tiny, SHAPE) == dict(parameters=3 * 3 * 9 + 3, trained=3 * 3 * 9 + 3)


@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize("network, process, kwargs, shape", [("ddpmpp", "edm", dict(model_channels=32, channel_mult=[1, 2], num_blocks=1, label_dim=3), (3, 16, 16)),
                                                             ("dit", "ddpm", dict(hidden_size=48, depth=2, num_heads=3), (4, 8, 8))])
def test_a_plain_step_is_linear_in_the_batch(network, process, kwargs, shape, batch):
    one, many = (plan.network_cost(network, json.dumps(kwargs), process, shape, n) for n in (1, batch))
    for what in ("forward", "step"): assert many[what] == pytest.approx(batch * one[what], rel=1e-3)  # embeddings of the time alone need not be


@pytest.mark.parametrize("phase, kept", [("sg", None), ("sg", True), ("sat", None)])
def test_the_parts_add_up_to_a_whole_step_with_values(tiny, phase, kept):
    "The count without values in parts, against one real step on the CPU."
    settings, B = ex.complete({**tiny, "kept_features": kept}), 4
    torch.manual_seed(0)
    encoder = plan.fresh_encoder("small_cnn", 3)
    structure = ex.StructuralLoss(encoder)
    net = ex.NETWORKS["one_conv"](16, 3)
    denoiser, x0 = ex.Denoiser(net, ex.EDM()), torch.rand(B, *SHAPE) * 2 - 1
    features = encoder(x0).detach() if kept else None
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.) for module in (net, encoder)]
    whole = plan.counted(lambda: training.training_step(phase, [lambda: training.Seen(denoiser.loss(x0), x0, None, features)], structure, *optimizers))
    assert plan.step_flops(settings, phase, SHAPE) == whole


def test_images_of_any_size_cost_the_same_behind_an_encoder_that_resizes_them():
    small, large = (plan.structure_cost("resnet18", (3, side, side), False) for side in (32, 64))
    assert {key: small[key] for key in ("sg", "sg_kept", "sat")} == {key: large[key] for key in ("sg", "sg_kept", "sat")}


@pytest.mark.parametrize("name, settings, shape", [("edm-cifar10-32x32-uncond-vp", dict(network="ddpmpp", network_kwargs=dict(augment_dim=9)), (3, 32, 32)),
                                                   ("DiT-XL/2", dict(network="dit", network_kwargs={}), (4, 32, 32))])
def test_networks_without_values_have_the_published_numbers_of_parameters(name, settings, shape):
    published = json.loads(gzip.decompress((root() / "data" / "reference" / "tensors.json.gz").read_bytes()))[name]
    assert plan.parameters(plan.network_of(settings, shape)) == published.get("params", published.get("total"))


def test_shared_training_is_counted_once():
    cells = plan.plan(["table5"], ["sat", "sg_then_plain"])
    sat, other = (line for line in cells if line["column"] == "cifar10")
    assert sat["phases"][0]["stage"] == other["phases"][0]["stage"] and sat["phases"][1]["stage"] != other["phases"][1]["stage"]
    assert sat["new_gpu_hours"] == pytest.approx(sat["gpu_hours"])
    assert other["new_gpu_hours"] == pytest.approx(other["gpu_hours"] - sat["phases"][0]["gpu_hours"])
    assert plan.total([sat, other])["gpu_hours"] == pytest.approx(sat["gpu_hours"] + other["new_gpu_hours"])
    assert plan.total([sat, sat]) == plan.total([sat])


def test_hours_are_flops_over_rate_and_utilisation():
    (line,) = plan.plan(["fig6"], ["plain"], rate=100., utilisation=0.5)
    flops = sum(part["flops"] * part["steps"] for part in line["phases"]) + sum(part["flops"] * part["images"] for part in line["samples"])
    assert line["gpu_hours"] == pytest.approx(flops / (3600 * 100e12 * 0.5))
    (half,) = plan.plan(["fig6"], ["plain"], rate=200., utilisation=0.5)
    assert half["gpu_hours"] == pytest.approx(line["gpu_hours"] / 2)
    assert sum(part["steps"] for part in line["phases"]) == sum(ex.FULL["imagenet_dit"]["steps"]) and len(line["samples"]) == 6  # a curve is measured along the training


def test_disk_agrees_with_the_doctor():
    assert plan.total(plan.plan(["table7"]))["disk"] == doctor.run_bytes([settings for *_, settings, _ in doctor.full_cells("table7")])


def test_fine_tuning_trains_and_keeps_what_its_method_says():
    "Table 4's rows on one target: nothing is shared, frozen weights have no gradient to compute and no checkpoint."
    cells = {line["row"]: line for line in plan.plan(["table4"], ["bitfit", "full", "sadm"]) if line["column"] == "food101"}
    step = {row: line["phases"][0]["flops"] for row, line in cells.items()}
    parameters = 674_093_984  # DiT-XL/2 with 101 classes instead of 1,000: 899 embeddings of 1,152 less
    assert all(line["parameters"] == 675_129_632 - 899 * 1152 == parameters for line in cells.values())
    assert cells["full"]["trained"] == parameters - 256 * 1152 > 100 * cells["bitfit"]["trained"]  # positions are fixed
    assert step["bitfit"] < 0.7 * step["full"] < 0.7 * step["sadm"], "two of three passes"
    assert {line["phases"][0]["disk"] for line in cells.values()} == {20 * line["trained"] for line in cells.values()}
    assert plan.total(list(cells.values()))["gpu_hours"] == pytest.approx(sum(line["gpu_hours"] for line in cells.values()))
    assert [part["name"] for part in cells["sadm"]["data"]] == ["food101", "food101_latents"] and all(part["ready"] or part["bytes"] for part in cells["sadm"]["data"])


def test_fine_tuning_is_rehearsed(monkeypatch, capsys):
    assert plan.dry_run("table4", "smoke", rows="difffit,sadm") == 0
    out = capsys.readouterr().out
    assert re.search(r"step of sat .*omega D \d", out) and out.count("no other") == 2 and "2 of 2 would run" in out
    monkeypatch.setattr(plan.adaptation, "with_trained", lambda net, folder: net)  # as if training had done nothing
    assert plan.dry_run("table4", "smoke", rows="bitfit") == 1 and "0 parameters moved" in capsys.readouterr().out


def test_a_rehearsal_takes_real_steps(monkeypatch, capsys):
    assert plan.dry_run("table5", "smoke", rows="sat") == 0
    out = capsys.readouterr().out
    assert re.search(r"step of sg .*loss \d", out) and re.search(r"step of sat .*omega D \d", out) and "read back" in out and "1 of 1 would run" in out
    called = []
    real = training.training_step
    monkeypatch.setattr(training, "training_step", lambda phase, *more, **options: called.append(phase) or real(phase, *more, **options))
    assert plan.dry_run("table5", "smoke", rows="sat") == 0 and called == ["sg", "sg", "sat"]
    monkeypatch.setattr(training, "training_step", lambda phase, *more, **options: dict(loss=torch.tensor(1.)))  # one that does nothing
    assert plan.dry_run("table5", "smoke", rows="sat") == 1 and "no weight of the denoiser moved" in capsys.readouterr().out


def test_a_rehearsal_notices_settings_that_no_run_survives(monkeypatch, capsys):
    monkeypatch.setitem(ex.TABLE5, "ddpm", dict(phases=("plain", "plain"), augment_p=0.1))  # its network knows nothing of augmentation
    assert plan.dry_run("table5", "smoke", rows="ddpm") == 1 and "WRONG" in capsys.readouterr().out
    monkeypatch.setitem(ex.TABLE5, "ddpm", dict(phases=("plain", "plain"), relation="cosinus", encoder="vgg"))
    assert plan.dry_run("table5", "smoke", rows="ddpm") == 1 and "'vgg' is not there yet" in capsys.readouterr().out


def test_lsgm_and_sadm_on_it_are_rehearsed(capsys):
    for table, column, latents in (("table2", "cifar10", "180 x 16 x 16"), ("table3", "celeba", "180 x 16 x 16")):
        assert cli.main([table, "--scale", "full", "--rows", "SADM latent", "--dry-run"]) == 0
        out = capsys.readouterr().out
        assert all(said in out for said in (f"{table}, SADM latent, {column}", "step of sg", "step of sat", "rk45", f"latents {latents}", "sadm.lsgm trains VAE and prior on one")), out
    assert cli.main(["table2", "--scale", "full", "--rows", "LSGM", "--dry-run"]) == 0 and capsys.readouterr().out.count("step of plain") == 2
    faces = plan.plan(["table3"], ["SADM latent"])
    assert [line["column"] for line in faces] == ["celeba", "ffhq"] and not any("phases" in line for line in faces) and all("authors published none" in line["lacks"][-1] for line in faces)


def test_a_part_of_lsgm_that_does_not_learn_is_noticed(monkeypatch, capsys):
    whole = plan.lsgm_training
    def without(vae, prior, *args, **settings):
        parts, step = whole(vae, prior, *args, **settings)
        parts["prior_optimizer"].step = lambda *_: None
        return parts, step
    monkeypatch.setattr(plan, "lsgm_training", without)
    assert cli.main(["table2", "--scale", "full", "--rows", "LSGM", "--dry-run"]) == 1
    assert "plain: no weight of the prior moved" in capsys.readouterr().out


def test_wrong_names_are_refused(capsys):
    assert cli.main(["table5", "--scale", "smoke", "--rows", "sadm", "--dry-run"]) == 1
    assert "unknown row 'sadm'; the rows are ddpm, sg" in capsys.readouterr().err
    assert cli.main(["plan", "table5", "--rows", "sadm"]) == 1 and "unknown row 'sadm'" in capsys.readouterr().err
    assert cli.main(["plan", "table6"]) == 1 and "there are the tables" in capsys.readouterr().err
    assert cli.main(["plan", "--gpu", "tpu"]) == 1 and "--rate" in capsys.readouterr().err
    assert cli.main(["fig2", "--dry-run"]) == 1 and "there are the tables table1" in capsys.readouterr().err


def test_the_command_rehearses_and_runs_no_notebook(monkeypatch, capsys):
    monkeypatch.setattr(cli, "run_notebook", None)
    assert cli.main(["table5", "--scale", "smoke", "--rows", "ddpm", "--dry-run"]) == 0
    assert "step of plain" in capsys.readouterr().out


def test_the_plan_says_what_it_rests_on(capsys):
    assert cli.main(["plan", "fig6", "--rows", "plain", "--gpu", "mine", "--rate", "50", "--utilisation", "0.2", "--gpus", "4"]) == 0
    out = capsys.readouterr().out
    assert "estimated from counted FLOPs, no GPU measurement exists here" in out and "50 TFLOP/s of mine x 0.2" in out and "days on 4 GPUs" in out and "data set imagenet256_latents" in out
