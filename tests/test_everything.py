"Verdicts on made-up results whose right answer is known by construction, in both directions; and `sadm all` on made-up pages."

import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from sadm.claims import CLAIMS, VERDICTS, claims_frame, proved, report_html, structural_pairs
from sadm.data import FINE_TUNING, root
from sadm.everything import in_order, main, page_key, run_all, write_report
from sadm.experiments import workers_for

HOLDS, FAILS, UNDECIDED, ONE_SEED, NOT_RUN = VERDICTS


# ---------------------------------------------------------------- verdicts

def made(rows, metric="fd_independent", n=8, noise=0.01, data="fashion16", scale="study", **columns):
    "A line per row and seed around 100 times the row's factor; seeds differ much, rows of a seed little."
    g = np.random.default_rng(zlib.crc32(repr((rows, data, columns)).encode()))  # other rows, other noise
    return pd.DataFrame([{"row": row, "seed": seed, "data": data, "scale": scale, metric: 100 * level * factor * (1 + noise * g.standard_normal()), "run": f"{row}-{seed}", "commit": "abc", **columns}
                         for seed in range(n) for level in [1 + 0.2 * np.random.default_rng(seed).random()] for row, factor in rows.items()])


def curves(rows, **how):  # row -> (factor after 1, 2, ... images)
    return pd.concat([made({row: values[k] for row, values in rows.items()}, images=1000 * (k + 1), **how) for k in range(len(next(iter(rows.values()))))])


def table5(sg, sat, then_plain=None, **how): return made(dict(ddpm=1., sg=sg, sat=sat, sg_then_plain=sg if then_plain is None else then_plain, feature=1.), nfe=23, **how)
def omega(first, second, stage="confirm", metric="fd_independent", **more):
    return pd.concat([made(dict(plain=1., signal4_1=level, sat_slow=level, constant_1=1.), metric, data=data, stage=stage, **more) for data, level in (("fashion16", first), ("digits8", second))])
def recall(first, second): return omega(first, second, metric="miss").assign(recall=lambda f: 1 - f["miss"] / 200).drop(columns="miss")
def maps(noised, sat): return made(dict(clean=0.5, noised=noised, ddpm=0.6, sg=0.6, sat=sat, sat_slow=0.6), "miss", noise=0.002).assign(label_correlation=lambda f: 1 - f["miss"] / 100)
def fig2(sat): return made(dict(plain=1., sg=1., sg_constant=1.2, sg_identity_constant=1.2, sat=sat, sat_constant=2.), "W2")
def table4(sadm, sadm_full, full=1.): return made(dict(adaptformer=1.2, bitfit=1., vpt=1.2, lora=1.2, difffit=1., full=full, sadm=sadm, sadm_full=sadm_full))
def table7(relations, distances): return made({"plain": 1., "cosine-l2": 1., "l1-l2": 3., "l1-l2-equal": relations, "l2-l2-equal": relations, "cosine-l1-equal": distances, "cosine-cosine-equal": distances})
def rounds(first, second, third): return curves(dict(sg=(1, 0.9, 0.8, 0.7), plain=(1, 0.9, 0.8, 0.7), sat=(1, 2, 2, 2), sat_slow=(1, 0.9 * first, 0.8 * second, 0.7 * third)))
def full(*rows):  # (row, factor, phases, data, more settings)
    return pd.concat([made({row: factor}, "fid", noise=0.002, data=data, scale="full", images=10, differences=json.dumps(dict(phases=phases, **more))).assign(fid=lambda f: f["fid"] / 50, fd_independent=lambda f: f["fid"] * 7, nll=lambda f: f["fid"]) for row, factor, phases, data, more in rows])


PLAIN, SADM = [["plain", 2]], [["sg", 1], ["sat", 1]]
def pair(gain, data, **more): return full(("base", 1., PLAIN, data, more), ("sadm", gain, SADM, data, more))
def imagenet(first, second, guidance=1.5): return pd.concat([pair(first, "imagenet256_latents", guidance=guidance), pair(second, "imagenet512_latents", guidance=guidance)])
def faces(celeba, ffhq): return pd.concat([pair(celeba, "celeba64"), pair(ffhq, "ffhq64")])


WORLDS = [  # claim, page, a world where the sentence is true, worlds where it is false
    ("sg", "table5", table5(0.8, 0.6), [table5(1., 0.6), table5(1.3, 0.6)]),
    ("sat", "table5", table5(0.8, 0.6), [table5(0.8, 0.8), table5(0.8, 0.9)]),
    ("sadm", "table5", table5(0.8, 0.6), [table5(0.8, 1.), table5(0.8, 1.2)]),
    ("share", "table5", table5(0.7, 0.6), [table5(0.9, 0.6), table5(1., 0.6), table5(1.1, 2.)]),
    ("adversary", "table5", table5(0.8, 0.6), [table5(0.8, 0.6, 0.6), table5(0.8, 0.6, 0.5)]),
    ("same_cost", "table5", table5(0.8, 0.6), [table5(0.8, 0.6).assign(nfe=lambda f: f["nfe"] + (f["row"] == "sat"))]),
    ("all_data", "omega", omega(0.8, 0.8), [omega(0.8, 1.), omega(1., 0.8), omega(1.2, 1.2)]),
    ("coverage", "omega", recall(0.8, 0.8), [recall(0.8, 1.), recall(1.3, 1.3)]),
    ("clean_only", "fig5", maps(0.9, 0.6), [maps(0.5, 0.6), maps(0.4, 0.6)]),
    ("heatmap", "fig5", maps(0.9, 0.5), [maps(0.9, 0.6), maps(0.9, 0.7)]),
    ("captured", "fig2", fig2(0.7), [fig2(1.), fig2(1.3)]),
    ("sota_adaptation", "table4", table4(1., 0.7), [table4(1., 1.), table4(1., 0.7, 0.7), table4(1., 0.7, 0.5)]),
    ("full_ddpm", "table4", table4(1., 0.7), [table4(0.7, 1.), table4(0.7, 1.2)]),
    ("difffit", "table4", table4(0.7, 1.), [table4(1., 0.7), table4(1.2, 0.7)]),
    ("faster", "fig6", curves(dict(plain=(4, 2, 1), sadm=(2, 1.5, 1))), [curves(dict(plain=(4, 2, 1), sadm=(4, 2, 1))), curves(dict(plain=(4, 2, 1), sadm=(6, 3, 1)))]),
    ("better_end", "fig6", curves(dict(plain=(4, 2, 1), sadm=(4, 2, 0.8))), [curves(dict(plain=(4, 2, 1), sadm=(2, 1, 1))), curves(dict(plain=(4, 2, 1), sadm=(2, 1, 1.2)))]),
    ("relation", "table7", table7(1.02, 1.5), [table7(1.5, 1.), table7(0.6, 1.)]),
    ("distance", "table7", table7(1.5, 1.02), [table7(1., 1.5), table7(1., 0.6)]),
    ("l1", "table7", table7(1.1, 1.1), [table7(1., 1.1), table7(0.8, 0.8)]),
    ("encoder", "fig7", made(dict(plain=3., a=1., b=1.01, c=0.99)), [made(dict(plain=1., a=1., b=1., c=1.4))]),
    ("resnet18", "fig7", made(dict(plain=1., inception_v3=0.8, vit_b_16=0.8, resnet18=1.)), [made(dict(plain=1., inception_v3=0.8, vit_b_16=1., resnet18=1.))]),
    ("first_round", "fig8", rounds(0.7, 0.7, 0.7), [rounds(1., 0.7, 0.7), rounds(1.3, 0.7, 0.7)]),
    ("rounds", "fig8", rounds(0.8, 0.7, 0.7), [rounds(0.8, 0.7, 0.5), rounds(0.8, 0.7, 1.)]),
    ("dit", "table1-full", imagenet(0.7, 0.7), [imagenet(1., 1.), imagenet(0.7, 1.2), imagenet(1.2, 0.7)]),
    ("mdt", "table1-full", imagenet(0.7, 1.), [imagenet(1., 0.7)]),  # 1.54 and 2.2; MDT: 1.79
    ("image_space", "table2-full", pair(0.7, "cifar10"), [pair(1., "cifar10")]),
    ("latent_space", "table2-full", pair(0.7, "cifar10_latents"), [pair(1., "cifar10_latents")]),
    ("latent_space", "lsgm_sadm", made(dict(lsgm_continued=1., lsgm_sadm=0.7)), [made(dict(lsgm_continued=1., lsgm_sadm=1.)), made(dict(lsgm_continued=1., lsgm_sadm=1.3))]),
    ("nll_latent", "lsgm_sadm", made(dict(lsgm_continued=1., lsgm_sadm=0.97), "bits_per_dim", noise=0.001), [made(dict(lsgm_continued=1., lsgm_sadm=factor), "bits_per_dim", noise=0.001) for factor in (1., 1.03)]),
    ("conditional", "table2-full", pair(0.7, "cifar10", conditional=True), [pair(1., "cifar10", conditional=True)]),
    ("nll", "table2-full", pair(0.7, "cifar10"), [pair(1., "cifar10"), pair(0.7, "cifar10").assign(nll=lambda f: 2 - f["nll"] / 10)]),
    ("faces", "table3-full", faces(0.7, 0.7), [faces(0.7, 1.), faces(1., 0.7)]),
    ("artbench", "table4-full", pd.concat([made(dict(sadm=0.7, difffit=1.), data="artbench10"), made(dict(sadm=0.09, difffit=0.2), data="food101")]), [pd.concat([made(dict(sadm=0.9, difffit=1.), data="artbench10"), made(dict(sadm=0.7, difffit=1.), data="food101")])]),
]


def verdict(folder, claim, page, frame, scale="quick", **others):  # page -> frame
    for old in folder.glob("*.csv"): old.unlink()
    for name, lines in {page: frame, **others}.items(): lines.to_csv(folder / f"{name}.csv", index=False)
    line, = claims_frame(folder, folder, "full" if page.endswith("-full") else scale, only=[claim]).to_dict("records")
    return line


@pytest.mark.parametrize("claim, page, true, false", WORLDS, ids=[f"{world[0]}, {world[1]}" for world in WORLDS])
def test_the_verdict_is_right_in_both_directions(claim, page, true, false, tmp_path):
    found = verdict(tmp_path, claim, page, true)
    assert found["verdict"] == HOLDS, found["evidence"]
    assert found["seeds"] == 8 and found["source"].endswith(f"{page}.csv") and found["runs"] and found["commit"] == "abc"
    for world in false:
        found = verdict(tmp_path, claim, page, world)
        assert found["verdict"] == FAILS, found["evidence"]
    one = verdict(tmp_path, claim, page, true[true["seed"] == 0])
    assert one["verdict"] == ONE_SEED, f"one seed decides nothing: {one['evidence']}"


def test_wild_seeds_decide_nothing(tmp_path):
    wild = table5(0.8, 0.6, noise=0.6, n=4)
    assert {claim: verdict(tmp_path, claim, "table5", wild)["verdict"] for claim in ("sg", "sat", "adversary", "share")} == dict.fromkeys(("sg", "sat", "adversary", "share"), UNDECIDED)


def test_every_claim_has_its_worlds():
    "Or is no matter of results at all."
    without = {claim.id for claim in CLAIMS} - {world[0] for world in WORLDS}
    assert without == {"sota_numbers", "approximation", "bound", "theory", "pictures", "rapid", "faster_mdt", "sota", "no_logit", "any_backbone"}  # the last three: below


def test_what_was_chosen_after_its_results_is_at_most_undecided(tmp_path):
    for slow, logit in ((1., 1.3), (1., 1.), (1.3, 1.)): assert verdict(tmp_path, "no_logit", "omega", made(dict(sat_slow=slow, logit=logit), stage="screen"))["verdict"] == UNDECIDED
    found = verdict(tmp_path, "image_space", "table5", made(dict(ddpm=1., sat_slow=0.7)))
    assert found["verdict"] == UNDECIDED and found["evidence"].startswith("exploratory") and "fashion16, sat_slow against ddpm: -" in found["evidence"]
    assert "beside it, exploratory: fashion16, sat_slow against ddpm" in verdict(tmp_path, "sadm", "table5", pd.concat([table5(0.8, 0.6), made(dict(sat_slow=0.9))]))["evidence"]


def columns_of(gain, **others):  # a full run of every column that the paper prints, all of one gain but for some
    level = lambda data: others.get(data, gain)
    return {"table1-full": imagenet(gain, gain),
            "table2-full": pd.concat([pair(level("cifar10"), "cifar10"), pair(level("cifar10"), "cifar10", conditional=True).assign(row=lambda f: f["row"] + " conditional")]),
            "table3-full": faces(level("celeba64"), level("ffhq64"))}


def test_state_of_the_art_needs_every_column(tmp_path):
    judge = lambda worlds: verdict(tmp_path, "sota", "table1-full", worlds["table1-full"], **{page: frame for page, frame in worlds.items() if page != "table1-full"})
    assert judge(columns_of(0.5))["verdict"] == HOLDS, judge(columns_of(0.5))["evidence"]
    assert judge(columns_of(0.5, ffhq64=1.3))["verdict"] == FAILS
    assert judge({page: frame for page, frame in columns_of(0.5).items() if page != "table3-full"})["verdict"] == NOT_RUN
    assert verdict(tmp_path, "mdt", "table1-full", pair(0.6, "imagenet256_latents", guidance=1.5, init="DiT-XL-2-256x256.pt"))["verdict"] == NOT_RUN, "from published weights: a departure"
    assert verdict(tmp_path, "mdt", "table1-full", imagenet(0.6, 0.6, guidance=1.25))["verdict"] == NOT_RUN, "a weight of one's choice decides nothing"
    assert verdict(tmp_path, "sota", "table1-full", imagenet(2., 2.), **{"table3-full": faces(0.5, 0.5).query("seed == 0")})["verdict"] == FAILS, "what fails with eight seeds fails, whatever has one"
    weights = lambda at_one_and_a_half, other: pd.concat([pair(level, "imagenet256_latents", guidance=weight).assign(row=lambda f: f["row"] + f" {weight}") for weight, level in ((None, other), (1.25, other), (1.5, at_one_and_a_half), (2., other))])
    assert [verdict(tmp_path, "mdt", "table1-full", world)["verdict"] for world in (weights(0.6, 2.), weights(2., 0.6))] == [HOLDS, FAILS]


def test_every_backbone_has_to_gain(tmp_path):
    judge = lambda image, latent: verdict(tmp_path, "any_backbone", "table1-full", imagenet(0.7, 0.7), **{"table2-full": pd.concat([pair(image, "cifar10"), pair(latent, "cifar10_latents").assign(row=lambda f: f["row"] + " latent")])})["verdict"]
    assert [judge(0.7, 0.7), judge(0.7, 1.), judge(1., 0.7)] == [HOLDS, FAILS, FAILS]
    assert verdict(tmp_path, "any_backbone", "table1-full", imagenet(0.7, 0.7))["verdict"] == NOT_RUN
    one = imagenet(0.7, 0.7).query("seed == 0").rename(columns=dict(fid="fd")).assign(scale="quick", data="fashion16")
    found = verdict(tmp_path, "any_backbone", "table1-quick", one, lsgm_sadm=made(dict(lsgm_continued=1., lsgm_sadm=1.)))
    assert found["verdict"] == FAILS and found["seeds"] == 8 and found["source"].endswith("lsgm_sadm.csv") and found["scale"] == "study", "seeds and source of what decides"


def test_a_sentence_about_all_data_sets_waits_for_all_of_them(tmp_path):
    assert [verdict(tmp_path, "faces", "table3-full", pair(gain, "ffhq64"))["verdict"] for gain in (0.7, 1.)] == [NOT_RUN, FAILS]
    targets = pd.concat([made(dict(sadm_full=0.7, adaptformer=1., bitfit=1., vpt=1., lora=1., difffit=1., full=1.), data=name, scale="full") for name in FINE_TUNING])
    assert verdict(tmp_path, "sota_adaptation", "table4-full", targets)["verdict"] == HOLDS
    assert verdict(tmp_path, "sota_adaptation", "table4-full", targets[targets["data"] != "sun397"])["verdict"] == NOT_RUN


def test_nothing_is_concluded_from_smoke_nor_from_nothing(tmp_path):
    assert verdict(tmp_path, "sg", "table5-smoke", table5(0.8, 0.6, scale="smoke"), scale="smoke")["verdict"] == UNDECIDED
    assert verdict(tmp_path, "sg", "table5-smoke", table5(0.8, 0.6, scale="smoke").query("seed == 0"), scale="smoke")["verdict"] == ONE_SEED
    assert verdict(tmp_path, "sg", "table5-smoke", table5(0.8, 0.6, scale="smoke"), scale="quick")["verdict"] == NOT_RUN, "smoke is no quick run"
    assert verdict(tmp_path, "sg", "table5", table5(0.8, 0.6)[["row", "seed"]])["verdict"] == NOT_RUN
    assert verdict(tmp_path, "sg", "table5", table5(0.8, 0.6).query("row != 'sg'"))["verdict"] == NOT_RUN


def test_the_committed_study_comes_before_a_live_run_and_a_full_run_stands_alone(tmp_path):
    results, runs = tmp_path / "results", tmp_path / "runs"
    for folder, name, frame in ((results, "table5", table5(0.8, 0.6)), (runs, "table5-quick", table5(1.3, 2., scale="quick"))):
        folder.mkdir()
        frame.to_csv(folder / f"{name}.csv", index=False)
    judge = lambda scale, results=results: claims_frame(results, runs, scale, only=["sg"]).iloc[0]
    assert judge("quick")["verdict"] == HOLDS and judge("quick")["scale"] == "study"
    assert judge("quick", runs)["verdict"] == FAILS and judge("quick", runs)["source"] == "table5-quick.csv"
    assert judge("full")["verdict"] == NOT_RUN, "a study is no full run"
    (results / "quick").mkdir()
    table5(0.8, 0.6, scale="quick").query("seed == 0").to_csv(results / "quick" / "table5.csv", index=False)
    assert judge("quick")["scale"] == "study", "the study comes first"
    (results / "table5.csv").rename(tmp_path / "table5.csv")
    assert judge("quick")["source"] == "table5-quick.csv" and judge("smoke")["verdict"] == NOT_RUN, "a live run comes before the committed one"
    (runs / "table5-quick.csv").unlink()
    assert judge("quick")["verdict"] == ONE_SEED and judge("quick")["scale"] == "quick" and judge("full")["verdict"] == NOT_RUN
    (tmp_path / "table5.csv").rename(results / "table5.csv")
    table5(0.8, 0.6, scale="full").to_csv(runs / "table5-full.csv", index=False)
    assert judge("full")["verdict"] == HOLDS and judge("full")["scale"] == "full"
    assert claims_frame(results, runs, "quick", only=["sg"], seeds=[3]).iloc[0]["verdict"] == ONE_SEED


def test_a_gain_in_fid_alone_is_undecided(tmp_path):
    fid = table5(0.8, 0.6, scale="full").rename(columns=dict(fd_independent="fid"))
    assert verdict(tmp_path, "sg", "table5-full", fid.assign(fd_independent=table5(0.8, 0.6)["fd_independent"]))["verdict"] == HOLDS
    leak = verdict(tmp_path, "sg", "table5-full", fid.assign(fd_independent=table5(1., 1.)["fd_independent"]))
    assert leak["verdict"] == UNDECIDED and "in fid alone" in leak["evidence"]
    assert verdict(tmp_path, "sg", "table5-full", fid.assign(fid=table5(1.2, 1.)["fd_independent"], fd_independent=table5(0.8, 0.6)["fd_independent"]))["verdict"] == FAILS, "FID is the paper's measure"


def test_a_mean_below_a_published_number_is_not_enough(tmp_path):
    near = verdict(tmp_path, "mdt", "table1-full", pair(0.785, "imagenet256_latents", guidance=1.5))  # 1.74 or so, below 1.79, with an interval that holds it
    assert near["verdict"] == UNDECIDED, near["evidence"]


def test_pairs_that_differ_in_more_than_the_method_are_none():
    frame = full(("base", 1., PLAIN, "cifar10", {}), ("sadm", 1., SADM, "cifar10", dict(omega=3., encoder="vit_b_16")), ("other", 1., SADM, "cifar10", dict(lr=1e-3)), ("sg", 1., [["sg", 2]], "cifar10", {}))
    assert structural_pairs(frame) == [("sadm", "base")]
    assert structural_pairs(pair(1., "cifar10", init="edm.pkl")) == [], "a departure from the paper is no backbone of it"
    assert structural_pairs(frame.assign(images=lambda f: f["images"] + (f["row"] == "sadm"))) == []


def test_the_paper_s_own_numbers_are_computed():
    claims = claims_frame(runs="nowhere").set_index("claim")["paper"]
    assert claims["sg"].startswith("holds: 3 of 3 (-22.2 to -16.7 %)") and claims["share"].startswith("holds")
    assert claims["sota_numbers"].startswith("does not hold") and "1.43" in claims["sota_numbers"] and "Abstract" not in claims["sota_numbers"]
    assert claims["same_cost"].startswith("holds") and "79, SADM 71 (unequal calls" in claims["same_cost"]
    assert claims["artbench"].startswith("holds in points, does not hold in per cent") and claims["sota_adaptation"].startswith("holds: lowest in 8 of 8")


def test_a_proof_that_no_longer_stands_is_refused():
    judge = next(claim.judge for claim in CLAIMS if claim.id == "bound")
    assert judge(None).verdict == HOLDS
    with pytest.raises(ValueError, match="no longer says"): proved("nbs/13_joint.ipynb", "always the tightest of all", HOLDS, "")(None)


# ---------------------------------------------------------------- sadm all

def page(folder, name, source):
    "A page with a parameters cell and one more."
    nb = nbformat.v4.new_notebook(metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python")))
    parameters = nbformat.v4.new_code_cell('scale = "auto"\nruns = ""', metadata=dict(tags=["parameters"]))
    nb.cells = [parameters, nbformat.v4.new_code_cell(source)]
    nbformat.write(nb, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


GOOD = "from pathlib import Path\nPath(runs, 'some-run').mkdir(exist_ok=True)\nPath(runs, 'some-run', 'result.json').write_text('{}')\nwith open(Path(runs) / 'count', 'a') as f: f.write('x')\nPath(runs, f'good-{scale}.csv').write_text('row,seed,run\\na,0,some-run\\n')"


def dead_links(html, folder):
    return [target for target in re.findall(r'href="([^"]+)"', html) if not (folder / target).exists()]


@pytest.fixture
def house(tmp_path):
    "Two made-up pages, of which one fails, committed results and a folder for runs."
    pages, results, runs = (tmp_path / name for name in ("pages", "results", "runs"))
    for folder in (pages, results, runs): folder.mkdir()
    table5(0.8, 0.6).to_csv(results / "table5.csv", index=False)
    page(pages, "good", GOOD)
    page(pages, "bad", "raise ValueError('no such <thing>')")
    return lambda **how: run_all("smoke", runs=runs, pages={path.stem: path for path in pages.glob("*.ipynb")}, results=results, **how), pages, results, runs


def test_a_failure_stops_nothing_and_what_is_done_is_skipped(house):
    again, pages, results, runs = house
    status = lambda lines: lines.set_index("name")["status"].to_dict()
    count = lambda: len((runs / "count").read_text())
    lines = again()
    assert status(lines) == dict(bad="failed", good="ok") and count() == 1
    assert lines.set_index("name").loc["bad", "error"] == "sadm bad: ValueError: no such <thing>"
    assert status(again()) == dict(bad="failed", good="skipped") and count() == 1, "what failed is run again, what is done is not"
    lines = again(only=["good"])
    assert status(lines) == dict(bad="not asked for", good="skipped") and "last time failed" in lines.set_index("name").loc["bad", "error"]
    page(pages, "good", GOOD + "\nprint('changed')")
    lines = again(only=["good"])
    assert status(lines)["good"] == "ok" and count() == 2, "a changed page runs again"
    path, claims = write_report(lines, "smoke", runs, results)
    html = path.read_text()
    assert all(f"<b>{name}</b>" in html for name in ["good", "bad", *(claim.id for claim in CLAIMS)]) and "no such &lt;thing&gt;" in html
    assert 'href="some-run/result.json"' in html and 'href="good-smoke.ipynb"' in html and 'href="bad-smoke.ipynb"' in html
    assert dead_links(html, runs) == []
    assert (runs / "all-smoke" / "good.log").exists() and "changed" in (runs / "all-smoke" / "good.log").read_text()


def test_other_code_or_parameters_run_again(house, monkeypatch):
    _, pages, results, runs = house
    key = lambda scale="smoke", name="good": page_key(pages / f"{name}.ipynb", dict(scale=scale, runs=str(runs)), results)
    before = key()
    assert key() == before != key("quick") and key(name="bad") != before
    table5(0.9, 0.6).to_csv(results / "table5.csv", index=False)
    assert key() != before, "changed results"
    table5(0.8, 0.6).to_csv(results / "table5.csv", index=False)
    assert key() == before
    monkeypatch.setattr("sadm.everything.code_checksum", lambda: "other")
    assert key() != before
    page(pages, "claims", "")
    (runs / "good-smoke.csv").write_text("row\na\n")
    first, others = key(name="claims"), key()
    (runs / "good-smoke.csv").write_text("row\nb\n")
    assert key(name="claims") != first and key() == others, "the claims read what the others wrote"


def processes(word):
    "Ids of other processes with a word in their environment."
    def found(path):
        try: return word.encode() in (path / "environ").read_bytes()
        except OSError: return False  # somebody else's, or gone
    return [int(path.name) for path in Path("/proc").glob("[0-9]*") if found(path) and int(path.name) != os.getpid()]


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into /proc")
def test_a_page_out_of_time_is_ended_with_all_it_started(house, monkeypatch):
    again, pages, results, runs = house
    monkeypatch.setenv("SADM_TEST_MARK", mark := f"mark-{os.getpid()}-{time.time_ns()}")
    page(pages, "good", "from pathlib import Path\nPath(runs, 'begun').write_text('')\nimport time; time.sleep(300)")
    lines = again(only=["good"], timeout=15 / 60).set_index("name")
    assert lines.loc["good", "status"] == "failed" and "not through after 0.25 minutes" in lines.loc["good", "error"] and lines.loc["good", "seconds"] < 60
    wait_until = time.time() + 20
    while processes(mark) and time.time() < wait_until: time.sleep(0.5)
    assert processes(mark) == [], "a kernel is left"
    page(pages, "good", GOOD)
    assert again(only=["good"]).set_index("name").loc["good", "status"] == "ok"


SLOW = "from pathlib import Path\nPath(runs, 'begun-{name}').write_text('')\nimport time\nwhile not Path(runs, 'begun-{other}').exists(): time.sleep(0.1)\n"


def test_two_pages_run_side_by_side(house, monkeypatch):
    "Each waits for the other to begin and has half of the cores; the one that measures time, and the claims, have the machine to themselves."
    again, pages, results, runs = house
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    half = f"import os\nassert os.environ['OMP_NUM_THREADS'] == '{max(1, workers_for([]) // 2)}'\n"
    for name, other in (("good", "bad"), ("bad", "good")): page(pages, name, half + SLOW.format(name=name, other=other))
    alone = "import os\nfrom pathlib import Path\nassert Path(runs, 'bad-smoke.ipynb').exists() and Path(runs, 'good-smoke.ipynb').exists() and 'OMP_NUM_THREADS' not in os.environ\n"
    page(pages, "performance", alone)
    page(pages, "claims", alone + "assert Path(runs, 'performance-smoke.ipynb').exists()")
    lines = again(timeout=2)
    assert list(lines["status"]) == ["ok"] * 4, lines


STARTED = """
import sys
from pathlib import Path
from sadm import everything
everything.notebooks = lambda: dict(good=Path(sys.argv[1]))
sys.exit(everything.main(["--scale", "smoke", "--runs", sys.argv[2]]))
"""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_pages_too(house, number):
    "Also where a shell began the command in the background, with SIGINT switched off."
    _, pages, results, runs = house
    mark = f"mark-{os.getpid()}-{time.time_ns()}"
    source = page(pages, "good", "from pathlib import Path\nPath(runs, 'begun').write_text('')\nimport time; time.sleep(300)")
    deaf = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen([sys.executable, "-c", STARTED, str(source), str(runs)], env=os.environ | {"SADM_TEST_MARK": mark}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=deaf)
    wait_until = time.time() + 120
    while not (runs / "begun").exists() and process.poll() is None and time.time() < wait_until: time.sleep(0.1)
    assert (runs / "begun").exists()
    process.send_signal(number)
    said = process.communicate(timeout=60)
    assert process.returncode == 130 and "call it again to go on" in said[1], said
    while processes(mark) and time.time() < wait_until: time.sleep(0.5)
    assert processes(mark) == [], "a kernel is left"
    assert json.loads((runs / "all-smoke" / "pages.json").read_text())["good"]["status"] == "interrupted"


def test_order_and_refusals(tmp_path, capsys):
    from sadm.cli import notebooks
    names = list(in_order(notebooks()))
    assert names[0] == "table5" and names[-1] == "claims" and set(names) == set(notebooks())
    assert main(["--only", "tabel5", "--runs", str(tmp_path)]) == 1 and "unknown page 'tabel5'; the pages are" in capsys.readouterr().err
    assert main(["--timeout", "0", "--runs", str(tmp_path)]) == 1 and "above 0" in capsys.readouterr().err
    done = subprocess.run([sys.executable, "-c", "import sys; from sadm.cli import main; sys.exit(main())", "all", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--only" in done.stdout and "--timeout" in done.stdout


def test_the_report_stands_alone(tmp_path):
    claims = claims_frame(runs=tmp_path)
    html = report_html(claims, tmp_path)
    assert "<script" not in html and not re.search(r'(?:src|href)="[a-z]+:', html) and dead_links(html, tmp_path) == []
    assert html.count("does not hold</b>") == (claims["verdict"] == FAILS).sum() > 0 and root().name
