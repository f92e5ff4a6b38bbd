"The studies' files hold what the code asks for, and a stopped study goes on where it stopped."

import pandas as pd
import pytest

from sadm.adaptation import ROWS, adaptation_settings, complete_adaptation
from sadm.data import root
from sadm.experiments import OMEGA, STUDY_KEYS, complete, continue_study, held, omega_cells, settings_hash

TINY = dict(network_kwargs=dict(model_channels=16, channel_mult=[1, 2], attn_resolutions=[8], patch_size=2), batch_size=16, warmup=50, encoder_steps=5,
            n_samples=16, n_reference=100, sampler_steps=3, independent_encoder="small_cnn")


def keys(cells):
    return {(stage, data, row, seed, settings_hash(settings)) for stage, data, row, seed, settings in cells}


def test_the_committed_study_holds_exactly_what_the_code_asks_for():
    "A changed default or row would make other settings of it: then the study's lines no longer belong to their names."
    study = pd.read_csv(root() / "data" / "results" / "omega.csv", dtype={"settings": str})
    there = list(study[STUDY_KEYS].itertuples(index=False, name=None))
    assert len(set(there)) == len(there), "a line stands twice"
    assert set(there) == keys(omega_cells("study", list(OMEGA)))


def test_the_committed_table4_holds_exactly_what_the_code_asks_for():
    study = pd.read_csv(root() / "data" / "results" / "table4.csv", dtype={"settings": str})
    asked = [(row, seed, settings_hash(complete_adaptation(adaptation_settings(row, "study", seed)))) for seed in (0, 1, 2) for row in ROWS]
    assert sorted(study[["row", "seed", "settings"]].itertuples(index=False, name=None)) == sorted(asked)
    assert study["fd_independent_weights"].nunique() == study["fd_classifier_weights"].nunique() == 1, "measured in different encoders"


def test_a_stopped_study_goes_on_where_it_stopped(tmp_path):
    cells = [("screen", "fashion16", row, seed, complete({**TINY, "seed": seed, "phases": phases}))
             for seed in (0, 1) for row, phases in (("plain", [["plain", 2]]), ("sg", [["sg", 2]]), ("sat", [["sg", 1], ["sat", 1]]))]
    path, pushes = tmp_path / "study.csv", tmp_path / "push.csv"
    first = continue_study(cells[:3], tmp_path / "runs", "smoke", path, pushes)
    assert len(first) == 3 == len(pd.read_csv(path)) and set(pd.read_csv(pushes)["encoder"]) == {"before", "after"}
    for old in (tmp_path / "runs").glob("*seed0*"): old.rename(old.with_name("gone-" + old.name))  # another machine: only the file is there
    whole = continue_study(cells, tmp_path / "runs", "smoke", path, pushes)
    assert keys(cells) == set(whole[STUDY_KEYS].itertuples(index=False, name=None)) and len(whole) == 6
    assert not list((tmp_path / "runs").glob("fashion16*seed0*")), "what the file holds is not run again"
    before = path.read_bytes()
    pd.testing.assert_frame_equal(continue_study(cells, tmp_path / "runs", "smoke", path, pushes), pd.read_csv(path, dtype={"settings": str}))
    assert path.read_bytes() == before and len(pd.read_csv(pushes)) == 6  # sg: one line a seed, sat: two
    lock = held(tmp_path / "runs" / "study-study", wait=False)
    with pytest.raises(RuntimeError, match="is in use by"): continue_study(cells, tmp_path / "runs", "smoke", path, pushes)
    lock.release()
