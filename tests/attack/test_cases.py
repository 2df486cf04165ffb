"""Cases that users met, each with what should happen; the kinds that they belong to are attacked by
the files beside."""

from __future__ import annotations

import json
import os
import resource
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from book.tools import build
from eqr import PROJECT, SHIPPED, data, experiments, recipes, store as stores
from eqr.checkpoint import CheckpointError, load_model, load_tensors, save_tensors
from eqr.config import DataConfig
from eqr.cost import require_fits
from eqr.files import FileError, beside, target, write_file
from eqr.notebook import fitting
from eqr.settings import ConfigError, UserError
from eqr.store import Store, default_root, inspect
from eqr.studies.cells import CellFile, StudyError
from eqr.train import train


@pytest.fixture(autouse=True)
def counted(tally) -> None:
    """Each of these is one case."""
    tally.add("same")


# --- Identity before use --------------------------------------------------------------------------


def test_a_model_is_not_evaluated_on_another_data_set_of_the_same_name(
    eqr, make_recipe, problems, tmp_path
):
    other = data.build(problems.task, DataConfig(train=64, test=24, seed=5))
    data.save(problems, tmp_path / "set")
    recipe = make_recipe(data={"source": str(tmp_path / "set")}, train={"steps": 2})
    store = Store(tmp_path / "store")
    run = experiments.train_run(recipe, store)
    words = ("eval", "-c", run.file("model.safetensors"), "--depth", 1, "--problems", 4)
    assert eqr(*words).code == 0
    data.save(other, tmp_path / "set", overwrite=True)
    eqr(*words).refused(other.digest, problems.digest, "restore that data set", "--data")
    assert eqr(*words, "--data", tmp_path / "set").code == 0, "on purpose"
    with pytest.raises(data.DataError, match="was trained on"):
        experiments.load_trained(run, store)


def test_the_commit_is_that_of_the_projects_own_repository(tmp_path, monkeypatch):
    inside = tmp_path / "a" / "project"
    inside.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", tmp_path / "a"], check=True)
    named = ["-c", "user.name=x", "-c", "user.email=x", "commit", "-q", "--allow-empty", "-m", "x"]
    subprocess.run(["git", "-C", tmp_path / "a", *named], check=True)
    monkeypatch.setattr(stores, "PROJECT", inside)
    assert stores.commit() == "unknown"
    monkeypatch.setattr(stores, "PROJECT", tmp_path / "a")
    assert len(stores.commit().rstrip("+")) == 10
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert len(stores.commit().rstrip("+")) == 10, "as while a hook runs"


def test_a_command_notices_that_its_code_is_another_checkouts(eqr, tmp_path, monkeypatch):
    (tmp_path / "eqr").mkdir()
    (tmp_path / "eqr" / "__init__.py").touch()
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    eqr("recipes").refused(str(tmp_path), str(PROJECT), "make venv")


def test_a_relative_store_is_one_wherever_a_command_is_started(tmp_path, monkeypatch):
    monkeypatch.setenv("EQR_STORE", "some/store")
    places = []
    for folder in (tmp_path, PROJECT):
        monkeypatch.chdir(folder)
        places.append(default_root())
    assert places == [PROJECT / "some/store"] * 2
    monkeypatch.setattr(stores, "CHECKOUT", False)
    with pytest.raises(stores.StoreError, match="absolute"):
        default_root()


def test_the_log_of_a_partial_run_is_sealed(make_recipe, problems, tmp_path):
    recipe, log = make_recipe(train={"log_every": 1}), tmp_path / "log.jsonl"
    for _ in range(2):
        list(train(recipe, problems, tmp_path, stop_after_s=0))
    with log.open("a") as file:
        file.write('{"torn')
    list(train(recipe, problems, tmp_path, stop_after_s=0))
    assert len(log.read_text().splitlines()) == 3, "what a killed process had begun is cut off"
    log.write_text(log.read_text().replace("1", "2", 1))
    with pytest.raises(CheckpointError, match=r"log\.jsonl: altered"):
        list(train(recipe, problems, tmp_path))


def test_a_cell_is_named_as_it_says_and_weights_lie_beside_their_own_cell(tmp_path, eqr):
    first, second = sorted((SHIPPED / "results/laptop/campaign").glob("*.safetensors"))[:2]
    place = tmp_path / "results" / first.parent.name
    place.mkdir(parents=True)
    for path in (first, first.with_suffix(".npz"), second.with_suffix(".npz")):
        shutil.copy(path, place)
    words = (
        "results",
        "verify",
        "--shipped",
        tmp_path / "results",
        "--store",
        tmp_path / "results",
    )
    (tmp_path / "results" / ".DS_Store").touch()
    assert eqr(*words).code == 0
    shutil.copy(second, place / first.name)
    assert "are not the weights of" in eqr(*words).err
    shutil.copy(first.with_suffix(".npz"), place / second.with_suffix(".npz").name)
    with pytest.raises(StudyError, match="give it that name again"):
        CellFile.read(place / second.with_suffix(".npz").name)


# --- Where output goes ----------------------------------------------------------------------------


@pytest.fixture
def table(eqr, learned, tmp_path):
    """Evaluate into a file: ``table(path)``."""
    words = ("eval", "-c", learned.path, "--depth", 1, "--problems", 2, "--select", "average")
    return lambda *more: eqr(*words, *more)


def test_a_table_goes_through_a_link_into_a_device_and_to_standard_output(table, tmp_path):
    real, link = tmp_path / "real.csv", tmp_path / "link.csv"
    link.symlink_to(real)
    before = os.umask(0o027)
    try:
        assert table("--out", link).code == 0 and link.is_symlink()
    finally:
        os.umask(before)
    assert real.read_text().startswith("depth,") and stat.S_IMODE(real.stat().st_mode) == 0o640
    (tmp_path / "null").symlink_to("/dev/null")
    assert table("--out", tmp_path / "null").code == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    done = table("--out", "-")
    assert done.out == real.read_text() and not Path("-").exists()
    odd = tmp_path / "a {b} 'c é" / ("n" * 240 + ".csv")
    odd.parent.mkdir()
    assert table("--out", odd).code == 0 and odd.is_file()
    assert [path.name for path in odd.parent.iterdir()] == [odd.name]


def test_a_strangers_file_is_not_replaced(table, eqr, learned, tmp_path, monkeypatch):
    mine = tmp_path / "mine.csv"
    mine.write_text("years,of,work\n")
    table("--out", mine).refused("mine.csv", "not what this command writes")
    table("--out", learned.path).refused("not what this command writes")
    table("--plot", tmp_path / "a.bmp").refused("must end in")
    assert mine.read_text() == "years,of,work\n" and load_model(learned.path)
    (tmp_path / "package.json").write_text('{"name": "mine"}')
    eqr("export", learned.path, tmp_path / "package.onnx").refused("package.json", "another file")
    with pytest.raises(FileError, match="not what this command writes"):
        save_tensors(mine, {}, {})
    assert (
        table("--out", tmp_path / "new.csv").code == table("--out", tmp_path / "new.csv").code == 0
    )


def test_only_local_paths_are_written_and_tilde_is_home(eqr, table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    eqr("data", "build", "s3://bucket/x", "--train", 4, "--test", 2).refused("only local paths")
    assert table("--out=~/x.csv").code == 0 and table("--out", "~/y.csv").code == 0
    assert sorted(p.name for p in (tmp_path / "home").iterdir()) == ["x.csv", "y.csv"]
    assert not any("~" in path.name or ":" in path.name for path in tmp_path.iterdir())


def test_a_file_system_that_cannot_sync_folders_or_lock_is_no_obstacle(tmp_path, monkeypatch):
    real = os.fsync

    def refusing(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)
    run = Store(tmp_path).obtain("test", {}, lambda d: write_file(d / "a", b"1"))
    assert run.file("a").read_bytes() == b"1"

    def unknown(*_: object) -> None:
        raise OSError(38, "no locks")

    monkeypatch.setattr("fcntl.flock", unknown)
    assert Store(tmp_path).obtain("test", {"x": 1}, lambda d: write_file(d / "a", b"1"))


def test_a_full_disk_is_one_line_and_what_was_there_stays(eqr, tmp_path):
    words = [
        "train",
        "sudoku6",
        "--profile",
        "smoke",
        "-s",
        "train.steps=6",
        "-s",
        "train.checkpoint_every=2",
    ]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert eqr(*words, "--stop-after", 0).code == 0  # data set and first checkpoint
    (resume,) = (tmp_path / "store").rglob("resume.safetensors")
    before = resume.read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        done = eqr(*words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert done.code == 1 and done.out == "" and "Traceback" not in done.err
    assert "resume.safetensors: cannot be written" in done.err
    assert resume.read_bytes() == before
    assert eqr(*words).code == 0


def test_names_of_temporary_files_end_like_their_own(tmp_path):
    with beside(tmp_path / f"{'x' * 250}.npz") as temporary:
        assert temporary.suffix == ".npz" and len(temporary.name) < 255
    assert target(tmp_path / "new") == (tmp_path / "new").resolve()
    with pytest.raises(FileError, match="is a folder"):
        target(tmp_path)


def test_a_store_of_someone_else_can_be_read(tmp_path, monkeypatch):
    run = Store(tmp_path).obtain("test", {}, lambda d: write_file(d / "a", b"1"))

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "locks"))

    monkeypatch.setattr("eqr.files.lock", refused)
    assert Store(tmp_path).obtain("test", {}, lambda d: pytest.fail("made again")) == run
    with pytest.raises(PermissionError, match="locks"):
        Store(tmp_path).obtain("test", {"x": 1}, lambda d: None)


# --- Sizes ----------------------------------------------------------------------------------------

LARGE = (
    "train sudoku6 --profile smoke -s train.batch=2000000000",
    "train sudoku6 --profile smoke -s model.hidden=1000000000",
    "train sudoku6 --profile smoke -s model.hidden=99999999999999999999",
    "train sudoku6 --profile smoke -s model.blocks=1000000000",
    "train sudoku6 --profile smoke -s model.high_cycles=1000000000",
    "train sudoku6 --profile smoke -s data.train=1000000000",
    "train maze9 --profile smoke -s task.width=1000000001 -s task.height=1000000001",
    "bench sudoku6 --profile smoke --threads 100000000",
    "bench sudoku6 --profile smoke -s train.batch=1000000000",
    "eval -c MODEL --depth 1000000000",
    "eval -c MODEL --breadth 1000000000",
    "eval -c MODEL --breadth 1000000 --rows 1000000000",
    "halt -c MODEL fixed --breadth 1000000000",
    "halt -c MODEL fixed --depth 1000000000",
    "solve -c MODEL 1............... --depth 1000000000",
    "solve -c MODEL 1............... --breadth 1000000000",
    "data build OUT --kind maze -s width=1000000000 -s height=1000000000",
    "data build OUT --train 2000000000",
    "study run tuning --seeds 0-1000000000 --out OUT",
    "study run tuning --jobs 1000000000 --out OUT",
)


@pytest.mark.parametrize("line", LARGE)
def test_what_cannot_fit_is_refused_before_memory_is_taken(line, eqr, learned, tmp_path):
    known = {"MODEL": learned.path, "OUT": tmp_path / "out"}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    eqr(*(known.get(word, word) for word in line.split())).refused()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
    assert not (tmp_path / "out").exists()


def test_what_fits_is_never_refused(monkeypatch):
    for profile, there in (("smoke", 2e9), ("laptop", 8e9), ("paper", 140e9)):
        monkeypatch.setattr("eqr.settings.memory", lambda there=there: there)
        for name in recipes.recipe_names(profile):
            require_fits(recipes.load_recipe(name, profile))


# --- Stray files, notebooks -----------------------------------------------------------------------


def test_stray_files_are_left_alone(tmp_path, monkeypatch):
    for name in ("Untitled.ipynb", ".ipynb_checkpoints/theory-checkpoint.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(build, "NOTEBOOKS", tmp_path)
    assert "Untitled" not in {path.stem for path in build.chapters()}
    (tmp_path / "laptop").mkdir()
    (tmp_path / "laptop" / "a.toml").write_text('base = "laptop/sudoku6"')
    (tmp_path / "laptop" / ".#a.toml").symlink_to("nobody@nowhere.1")
    (tmp_path / "laptop" / "._a.toml").write_bytes(b"\0\5\x16\7")
    (tmp_path / "laptop" / "b.toml").mkdir()
    monkeypatch.setattr(recipes, "RECIPES", tmp_path)
    assert recipes.recipe_names("laptop") == ["a"]


def test_what_systems_leave_in_a_run_is_no_fault(tmp_path):
    run = Store(tmp_path).obtain("test", {}, lambda d: write_file(d / "a", b"1"))
    for name in (".DS_Store", "._a", "Thumbs.db", "a~", ".ipynb_checkpoints"):
        (run.path / name).touch()
    assert inspect(run.path).faults == inspect(run.path).strays == ()


@pytest.mark.parametrize(
    "name, given, own, said",
    [
        ("profile", "Smoke", "laptop", "one of smoke, laptop"),
        ("checked", "0", 512, "at least 1"),
        ("checked", "-1", 512, "at least 1"),
        ("x", "007", 1, "a whole number"),
        ("x", "None", 1, "a whole number"),
        ("noise", "nan", 0.1, "a number"),
        ("noise", "1e999", 0.1, "at least 0"),
        ("depths", "[4, 0]", [1], "at least 1"),
        ("x", "9" * 5000, 1, "a whole number"),
        ("x", "[" * 5000, 1, "a whole number"),
    ],
)
def test_a_parameter_of_a_notebook_fits_its_own_value(name, given, own, said):
    with pytest.raises(ConfigError, match=said) as error:
        fitting(name, given, own)
    assert len(str(error.value)) < 200


def test_a_parameter_on_two_lines_is_refused(eqr, tmp_path):
    notebook = PROJECT / "notebooks/machine.ipynb"
    eqr("notebook", notebook, tmp_path / "o.ipynb", "-p", "seed=1\nchecked=2").refused("one line")
    eqr("notebook", notebook, PROJECT / "notebooks/theory.ipynb").refused("not what this command")


# --- Environments ---------------------------------------------------------------------------------

SEVERAL = """
import os, sys
from eqr.cli.main import main
codes = []
for words in (
    ["study", "list", "construction"],
    ["solve", "-c", "m.safetensors", "1..............β"],
    ["eval", "-c", "m.safetensors", "--problems", "2", "--depth", "1", "--store", "s é"],
):
    sys.argv[1:] = [os.fsdecode(word.encode()) for word in words]  # as a shell gives them
    try:
        main()
    except SystemExit as end:
        codes.append(end.code or 0)
print("codes", codes)
"""

PLAIN = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize(
    "changed", [PLAIN, {"PYTHONIOENCODING": "latin-1"}, {"HOME": None, "WORLD_SIZE": "4"}],
    ids=["ASCII", "Latin-1", "no home, a cluster"],
)  # fmt: skip
def test_commands_run_in_other_environments(changed, tmp_path, learned):
    environment = {**os.environ, **changed, "PYTHONPATH": str(PROJECT)}
    environment = {k: v for k, v in environment.items() if v is not None}
    place = tmp_path / "é {x} ü"
    place.mkdir()
    shutil.copy(learned.path, place / "m.safetensors")
    (tmp_path / "several.py").write_text(SEVERAL, encoding="utf-8")
    command = [sys.executable, tmp_path / "several.py"]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True)
    assert done.returncode == 0 and done.stdout.endswith(b"codes [0, 1, 0]\n"), done.stderr
    assert b"Traceback" not in done.stderr


def test_json_has_no_nan(capsys):
    from eqr.cli.console import show

    show({"a": float("nan"), "b": [np.float64("inf"), 1.5]}, "", True)
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5]}


def test_a_resumed_run_of_before_has_no_seal_of_its_log(make_recipe, problems, tmp_path):
    recipe = make_recipe()
    list(train(recipe, problems, tmp_path, stop_after_s=0))
    tensors, meta, _ = load_tensors(tmp_path / "resume.safetensors")
    del meta["log_sha256"]
    save_tensors(tmp_path / "resume.safetensors", tensors, meta)
    try:
        list(train(recipe, problems, tmp_path, stop_after_s=0))
    except UserError as error:
        pytest.fail(str(error))
