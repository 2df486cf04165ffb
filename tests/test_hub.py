"""What comes from the hub is whole, checked and named by its commit, or one clear line.

The hub is a local stand-in: it lists repositories and serves files at a commit, large ones from
another host as the real one does. It can be told to cut the connection, to damage a file, and to
refuse. Downloads themselves are huggingface_hub's.
"""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from eqr import data
from eqr.checkpoint import load_model
from eqr.imports import datasets, hub
from eqr.imports.datasets import read
from eqr.imports.hub import HubError, Source, parse
from eqr.tasks.maze import Maze
from eqr.tasks.sudoku import Sudoku

COMMIT = "5e1e8170a1a10ae352904758c34fc9bd6a35a41b"
CSV = "hub:sudoku-extreme"
EQR = "hf:locuslab/EqR-model"


@dataclass
class Hub:
    """What the stand-in serves, how it misbehaves, and what it was asked."""

    cdn: str = ""  # the same server under another host name
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)  # path -> content
    cut: int | None = None  # break the connection after so many bytes of a file
    damaged: str = ""  # a file whose content gets a wrong byte
    status: dict[str, int] = field(default_factory=dict)  # a part of the address -> empty answer
    sent: Counter = field(default_factory=Counter)  # path -> bytes
    tokens: dict[str, str | None] = field(default_factory=dict)  # host -> what it was shown


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def large(path: str) -> bool:
    """Whether the stand-in keeps a file with LFS."""
    return path.endswith((".csv", ".npy", ".pth"))


def entry(path: str, body: bytes) -> dict:
    """A file in a listing, as the hub's."""
    blob = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
    made = {"type": "file", "path": path, "size": len(body), "oid": blob}
    if large(path):
        made["lfs"] = {"oid": sha256(body), "size": len(body), "pointerSize": 128}
    return made


FORM = r"(api/(?P<api>models|datasets)/|(?P<cdn>cdn/)?)(?P<repo>(datasets/)?\S+?/[^/]+)"


def handler(state: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.tokens[self.headers["Host"].split(":")[0]] = self.headers["Authorization"]
            path = self.path.partition("?")[0].lstrip("/").replace("%2F", "/")
            for part, code in state.status.items():
                if part in path:
                    return self.answer(code, {})
            match = re.match(FORM + r"(?P<rest>/.*)?$", path)
            repo = match["repo"] if match["api"] != "datasets" else f"datasets/{match['repo']}"
            files = state.repositories.get(repo)
            if files is None:
                return self.answer(401, {"X-Error-Code": "RepoNotFound"})
            verb, _, rest = (match["rest"] or "").strip("/").partition("/")
            revision, _, name = rest.partition("/")
            if revision not in ("", "main", "v1", COMMIT):
                return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            if match["api"]:
                about = {"id": match["repo"], "sha": COMMIT, "siblings": []}
                tree = [entry(name, body) for name, body in files.items()]
                told = json.dumps(about if verb in ("", "revision") else tree)
                return self.answer(200, {"Content-Type": "application/json"}, told.encode())
            assert revision == COMMIT, "the file of another commit is asked for"
            self.send_file(path, name, files[name], bool(match["cdn"]))

        do_HEAD = do_GET

        def send_file(self, path: str, name: str, body: bytes, cdn: bool) -> None:
            about = entry(name, body)
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{about["oid"]}"'}
            if large(name):
                lfs = {"X-Linked-ETag": f'"{about["lfs"]["oid"]}"', "X-Linked-Size": len(body)}
                headers |= lfs
            if large(name) and not cdn:
                return self.answer(302, headers | {"Location": f"{state.cdn}/cdn/{path}"})
            if state.damaged == name:
                body = body[:-1] + bytes([body[-1] ^ 1])
            end = state.cut if large(name) else None
            if self.command == "GET":
                state.sent[name] += len(body[:end])
            self.answer(200, headers, body, end)

        def answer(self, code: int, headers: dict, body: bytes = b"", end: int | None = None):
            self.send_response(code)
            for name, value in (headers | {"Content-Length": len(body)}).items():
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[:end])
            self.close_connection = end is not None

        def log_message(self, *_) -> None:
            pass

    return Handler


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A stand-in that HF_ENDPOINT points to, with an empty cache; no waits between attempts."""
    state = Hub()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(state)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        state.cdn = f"http://localhost:{server.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("time.sleep", lambda _: None)
        yield state
        server.shutdown()


@pytest.fixture
def extreme(served, csv_files) -> dict[str, bytes]:
    """The files of Sudoku-Extreme as the stand-in has them."""
    files = {"README.md": b"# Sudoku\n", **csv_files}
    served.repositories["datasets/sapientinc/sudoku-extreme"] = files
    return files


# ---------------------------------------------------------------------------- how a source is named


def test_sources_and_local_paths_are_told_apart(tmp_path):
    for text in ("folder", "a/b.pth", "./hf:a/b", "C:/data", str(tmp_path)):
        assert parse(text, "model") is None
    there = tmp_path / "odd:name"
    there.mkdir()
    assert parse(str(there), "dataset") is None
    source = Source("model", "a/b", "refs/pr/3", "x/y.pth")
    assert parse("hf:a/b@refs/pr/3/x/y.pth", "model") == source
    assert parse("hub:sudoku-extreme@v1", "dataset").repo == "sapientinc/sudoku-extreme"
    for text in ("hf:a/b", "hf:a/b@v1", "hf:a/b/c.d/e", "hf:a/b@1.0/c"):
        assert str(parse(text, "model")) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hf://a/b", "must be written hf:OWNER/REPO[@REVISION][/PATH]"),
        ("hf:models/a/b", "must be written"),
        ("hf:a/b@/c", "must be written"),
        ("hf:a/b/../../c", "must be written"),
        ("hub:eqr-modl/x.pth", "did you mean 'eqr-model'"),
        ("https://huggingface.co/a/b", "no such file; what is on the hub is written hf:"),
    ],
)
def test_a_source_that_is_misspelt_is_refused_before_anything_is_asked(eqr, tmp_path, text, said):
    eqr("import-checkpoint", text, tmp_path / "out.safetensors").refused(said)


# ------------------------------------------------------------------------------------ data sets


def test_a_data_set_comes_whole_once_at_one_commit_and_says_which(eqr, served, extreme, tmp_path):
    words = ("data", "import", CSV, tmp_path / "out", "--train", "4", "--json")
    assert "must be 'random' or 'first'" in eqr(*words, "--subsample", "frist").err
    done = eqr(*words)
    assert done.code == 0 and not done.err, done.err
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_bytes(extreme[name])
    made = data.load(tmp_path / "out")
    assert made.digest == read(tmp_path, Sudoku(), train=4).digest
    assert made.origin["source"] == "hf:sapientinc/sudoku-extreme"
    files = {name: sha256(extreme[name]) for name in ("test.csv", "train.csv")}
    wanted = {"repository": "sapientinc/sudoku-extreme", "revision": COMMIT, "files": files}
    assert made.origin["hub"] == wanted
    sizes = {name: len(extreme[name]) for name in files}
    assert served.sent == sizes, "no other file, and none again after the mistaken command"
    assert served.tokens == {"127.0.0.1": "Bearer hf_secret", "localhost": None}, "kept from others"


def test_official_arrays_come_from_wherever_the_repository_keeps_them(
    eqr, served, tmp_path, monkeypatch
):
    """The folder asked for lies below another one; the arrays that are not read stay there."""
    task, files, local = Maze(7, 7, path_min=3), {"README.md": b"#"}, tmp_path / "local"
    pool = task.generate(12, seed=1)
    for split, rows in (("train", slice(0, 8)), ("test", slice(8, 12))):
        arrays = {"inputs": pool.inputs[rows], "labels": pool.labels[rows]}
        arrays["group_indices"] = np.arange(len(arrays["inputs"]) + 1)
        for name, array in (arrays | {"puzzle_identifiers": np.zeros(3)}).items():
            np.save(buffer := io.BytesIO(), array)
            files[f"data/maze-7x7/{split}/all__{name}.npy"] = buffer.getvalue()
            (local / split).mkdir(parents=True, exist_ok=True)
            (local / split / f"all__{name}.npy").write_bytes(buffer.getvalue())
    served.repositories["datasets/locuslab/EqR-data"] = files
    words = ("--kind", "maze", "-s", "height=7", "-s", "width=7", "-s", "path_min=3")
    done = eqr("data", "import", "hub:eqr-data/maze-7x7", tmp_path / "out", *words)
    assert done.code == 0, done.err
    assert data.load(tmp_path / "out").digest == read(local, task).digest
    assert len(served.sent) == 6 and not any("identifiers" in name for name in served.sent)
    done = eqr("data", "import", "hub:eqr-data/maze-7x8", tmp_path / "no", *words)
    done.refused("has no data set 'maze-7x8'; did you mean 'data/maze-7x7'?")
    # The paper's own mazes, of which these stand in: by name, and as pinned or not at all.
    shape = {"kind": "maze", "height": 7, "width": 7, "path_min": 3}
    monkeypatch.setattr(datasets, "UNIQUE_TASK", shape)
    monkeypatch.setattr(datasets, "UNIQUE_SOURCE", "hub:eqr-data/maze-7x7")
    named = ("data", "import", "maze-unique", tmp_path / "named")
    eqr(*named).refused("train/all__inputs.npy: field sha256 is", "2922455815232dcb636ee45f")
    pins = {name: sha256(files[f"data/maze-7x7/{name}"]) for name in datasets.NPY_FILES}
    monkeypatch.setattr(datasets, "UNIQUE_PINS", pins)
    assert eqr(*named).code == 0
    assert data.load(tmp_path / "named").digest == data.load(tmp_path / "out").digest


def test_files_can_be_pinned(eqr, served, extreme, tmp_path):
    right, wrong = f"train.csv={sha256(extreme['train.csv'])}", f"train.csv={'0' * 64}"
    words = ("data", "import", CSV, tmp_path / "out", "--sha256")
    eqr(*words, wrong).refused("train.csv: field sha256 is")
    assert not served.sent, "the hub's own word was enough"
    eqr(*words, "train.csv").refused("must be FILE=HEX")
    eqr(*words, "train.csv=12").refused("must be 64 hexadecimal digits")
    eqr(*words, right.replace("train", "trian")).refused("did you mean 'train.csv'")
    assert eqr(*words, right).code == 0
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_bytes(extreme[name])
    local = ("data", "import", tmp_path, tmp_path / "local", "--sha256")
    eqr(*local, wrong).refused("train.csv: field sha256 is")
    assert eqr(*local, right).code == 0


# ---------------------------------------------------------------------------------- what goes wrong


def test_a_repository_revision_or_folder_that_is_not_there_is_named(eqr, served, extreme, tmp_path):
    out = tmp_path / "out"
    done = eqr("data", "import", "hf:sapientinc/sudoku-extrem", out)
    done.refused("hf:sapientinc/sudoku-extrem: RepositoryNotFound", "HF_TOKEN")
    eqr("data", "import", f"{CSV}@v9", out).refused("RevisionNotFound", "check owner, name")
    eqr("data", "import", f"{CSV}/hard", out).refused("has no data set 'hard'")
    del extreme["test.csv"]
    eqr("data", "import", CSV, out).refused("has no file test.csv")
    del extreme["train.csv"]
    eqr("data", "import", CSV, out).refused("this repository has no data set")
    assert not served.sent and not out.exists()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"cut": 1000}, "run the same command again"),
        ({"damaged": "train.csv"}, "train.csv: field sha256 is"),  # of the right size
        ({"status": {"resolve/": 401}}, "hf auth login"),
        ({"status": {"cdn/": 403}}, "403"),
        ({"status": {"tree/": 500}}, "run the same command again"),
        ({"status": {"api/": 200}}, "check the network and HF_ENDPOINT"),  # no hub answers so
    ],
    ids=str,
)
def test_a_fault_is_one_clear_line_and_the_same_command_works_once_it_is_over(
    eqr, served, extreme, tmp_path, fault, said
):
    words = ("data", "import", CSV, tmp_path / "out")
    vars(served).update(fault)
    eqr(*words).refused("hf:sapientinc/sudoku-extreme: ", said)
    assert not (tmp_path / "out").exists()
    vars(served).update(cut=None, damaged="", status={})
    assert eqr(*words).code == 0


def test_a_file_name_that_leaves_the_folder_is_refused(served, tmp_path):
    served.repositories["a/b"] = {"../../evil.pth": b"x"}
    repository = hub.open_repository(parse("hf:a/b", "model"))
    with pytest.raises(HubError, match="leaves its folder"):
        repository.fetch(["../../evil.pth"])
    assert not list(tmp_path.rglob("evil*"))


def test_an_unreachable_hub_is_one_clear_line(tmp_path):
    """In a process of its own: nothing that the library logs comes through either."""
    code = "import time; time.sleep = lambda s: None; from eqr.cli.main import main; main()"
    here = {"HF_ENDPOINT": "http://127.0.0.1:9", "EQR_STORE": str(tmp_path / "store")}
    done = subprocess.run(
        [sys.executable, "-c", code, "data", "import", CSV, str(tmp_path / "out")],
        env=os.environ | here | {"HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    assert "check the network" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


# ---------------------------------------------------------------------------------- checkpoints


OFFICIAL = {
    "dataset": {"name": "Maze", "data_path": "data/maze-5x5-unique-1k"},
    "arch": {
        "hidden_size": 8,
        "num_heads": 2,
        "H_cycles": 2,
        "L_cycles": 3,
        "L_layers": 1,
        "mlp_t": False,
        "pos_encodings": "rope",
        "board_height": None,
        "board_width": None,
    },
}  # as the official code stores it: neither seq_len nor vocab_size


@pytest.fixture
def pth(official_tensors) -> Callable[..., bytes]:
    """What makes an official checkpoint for 5×5 mazes, with or in place of its entries."""

    def made(**entries: object) -> bytes:
        torch.save({"model": official_tensors, **entries}, buffer := io.BytesIO())
        return buffer.getvalue()

    return made


def test_a_golden_checkpoint_from_the_hub_is_the_local_one(eqr, served, shared, tmp_path):
    local = shared / "golden" / "sudoku_mixer"
    files = {f"sudoku-extreme/eqr{s}": local.with_suffix(s).read_bytes() for s in (".pth", ".json")}
    served.repositories["locuslab/EqR-model"] = {"all_config.yaml": b"{}", **files}
    words = ("import-checkpoint", f"{EQR}@v1/sudoku-extreme/eqr.pth", tmp_path / "hub.safetensors")
    done = eqr(*words)
    assert done.code == 0 and "configuration: sudoku-extreme/eqr.json" in done.err, done.err
    assert eqr("import-checkpoint", f"{local}.pth", tmp_path / "local.safetensors").code == 0
    one, two = (load_model(tmp_path / f"{name}.safetensors") for name in ("hub", "local"))
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, two.model.state_dict()[name]), name
    assert one.meta["imported"]["sha256"] == two.meta["imported"]["sha256"]
    assert one.meta["imported"]["hub"] == {
        "repository": "locuslab/EqR-model",
        "revision": COMMIT,
        "files": {name: sha256(body) for name, body in files.items()},
    }


@pytest.mark.parametrize(
    ("others", "named", "used"),
    [
        ({}, "", "maze/eqr.pth"),  # stored in it
        ({"maze/all_config.yaml": 1, "config.json": 0}, "", "maze/all_config.yaml"),
        ({"maze/eqr.yaml": 1, "maze/data.json": 0}, "", "maze/eqr.yaml"),
        ({"all_config.yaml": 1, "config.json": 0}, "", "all_config.yaml"),
        ({"maze/a.json": 1, "maze/b.json": 0}, f"{EQR}/maze/a.json", "maze/a.json"),
        ({"maze/a.json": 1, "maze/b.json": 0}, "local.json", "local.json"),
    ],
    ids=["stored", "beside", "same name", "above", "named", "local"],
)
def test_the_configuration_is_found(eqr, served, pth, tmp_path, monkeypatch, others, named, used):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local.json").write_text(json.dumps(OFFICIAL))
    files = {name: json.dumps(OFFICIAL if good else {}).encode() for name, good in others.items()}
    weights = pth() if others else pth(config=OFFICIAL)
    served.repositories["locuslab/EqR-model"] = {"maze/eqr.pth": weights, **files}
    extra = ("--config", named) if named else ()
    done = eqr("import-checkpoint", f"{EQR}/maze/eqr.pth", "maze.safetensors", *extra)
    assert done.code == 0, done.err
    found = load_model("maze.safetensors")
    assert (found.task.kind, found.task.height, found.task.width) == ("maze", 5, 5)
    assert found.meta["imported"]["config"]["file"] == used


def test_a_configuration_that_is_not_found_or_does_not_fit(eqr, served, pth, tmp_path):
    files, out = {"maze/eqr.pth": pth(), "maze/latest.pth": b""}, tmp_path / "out.safetensors"
    served.repositories["locuslab/EqR-model"] = files
    words = ("import-checkpoint", f"{EQR}/maze/eqr.pth", out)
    eqr(*words).refused("stores no configuration; give it with --config FILE (no YAML or JSON")
    files |= {"maze/a.json": b"{}", "maze/b.yaml": b"{}"}
    eqr(*words).refused("--config FILE (there is maze/a.json, maze/b.yaml)")
    eqr(*words, "--config", f"{EQR}/maze/a.json").refused("maze/a.json: official conf")
    eqr(*words, "--config", f"{EQR}/maze/c.json").refused("did you mean 'maze/a.json'?")
    eqr("import-checkpoint", EQR, out).refused("name the checkpoint: maze/eqr.pth, maze/latest.pth")
    eqr("import-checkpoint", f"{EQR}/maze/eqt.pth", out).refused("did you mean 'maze/eqr.pth'?")
    eqr(*words, "--sha256", "0" * 64).refused("field sha256 is")
    assert not out.exists()


def test_released_weights_are_one_command(
    eqr, served, pth, official_tensors, tmp_path, monkeypatch
):
    """The pinned file, its average and its own configuration, whatever else that may hold."""
    monkeypatch.chdir(tmp_path)
    mean = {key: 2 * value for key, value in official_tensors.items()}
    row = torch.arange(8.0)[None]  # in the real files too it has no average
    arch = {"name": "eqr@EqRModel", "puzzle_emb_len": 2, "puzzle_emb_ndim": 8, "of_theirs": 1}
    entries = {
        "model": official_tensors | {"_orig_mod.model.inner.puzzle_emb.weights": row},
        "config": OFFICIAL | {"arch": OFFICIAL["arch"] | arch},
    }
    whole = pth(**entries, ema={"mu": 0.999, "shadow": mean})
    files = {"plain.pth": pth(**entries), "x/eqr.pth": whole}
    served.repositories["locuslab/EqR-model"] = files
    name, words = "eqr/maze-unique", ("import-checkpoint", "hub:eqr/maze-unique")
    monkeypatch.setitem(hub.RELEASED, name, ("x/eqr.pth", "0" * 64))
    eqr(*words).refused("x/eqr.pth: field sha256 is", f"{'0' * 64} is asked for")
    monkeypatch.setitem(hub.RELEASED, name, ("plain.pth", sha256(files["plain.pth"])))
    eqr(*words).refused("plain.pth: stores no average ('ema')")
    monkeypatch.setitem(hub.RELEASED, name, ("x/eqr.pth", sha256(whole)))
    eqr(*words, "--sha256", "1" * 64).refused(f"{'1' * 64} is asked for")
    done = eqr(*words)
    assert done.code == 0 and done.out == "maze-unique.safetensors\n", done.err
    made = load_model("maze-unique.safetensors")
    assert torch.equal(made.model.prefix, row[0]) and made.model.config.prefix == 2
    assert torch.equal(made.model.lm_head.weight, mean["_orig_mod.model.inner.lm_head.weight"])
    assert made.meta["imported"]["hub"]["files"] == {"x/eqr.pth": sha256(whole)}
    eqr(*words).refused("exists already")
    assert set(served.sent) == {"plain.pth", "x/eqr.pth"}
    eqr("import-checkpoint", f"{EQR}/x/eqr.pth").refused("of_theirs is neither used here")
    eqr("import-checkpoint", "hub:eqr/maze-uniqe").refused("did you mean 'eqr/maze-unique'?")
    eqr("data", "import", "hub:eqr/maze-unique", "out").refused("is not known")
    eqr("import-checkpoint", "hub:eqr/maze-unique@v9", "new").refused("RevisionNotFound")
    assert eqr("import-checkpoint", "hub:eqr/maze-unique@v1", "new").code == 0
