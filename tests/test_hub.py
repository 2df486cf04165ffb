"""What comes from the hub is whole, checked and named by its commit, or one clear line.

The hub is a local stand-in: it lists repositories and serves files at a commit. It can be told to
cut the connection, to damage a file, and to refuse. Downloads themselves are huggingface_hub's.
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
from eqr.imports import datasets, hub, pth, weights
from eqr.imports.datasets import read
from eqr.tasks.maze import Maze
from eqr.tasks.sudoku import Sudoku

COMMIT = "5e1e8170a1a10ae352904758c34fc9bd6a35a41b"
CSV = "hub:sudoku-extreme"
EQR = "hf:locuslab/EqR-model"


@dataclass
class Hub:
    """What the stand-in serves, how it misbehaves, and what it was asked."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)  # path -> content
    cut: int | None = None  # break the connection after so many bytes of a large file
    damaged: str = ""  # a file whose content gets a wrong byte
    status: dict[str, int] = field(default_factory=dict)  # a part of the address -> empty answer
    sent: Counter = field(default_factory=Counter)  # path -> bytes


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def entry(path: str, body: bytes) -> dict:
    """A file in a listing, as the hub's; what is large is kept with LFS."""
    blob = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
    made = {"type": "file", "path": path, "size": len(body), "oid": blob}
    if path.endswith((".csv", ".npy", ".pth")):
        made["lfs"] = {"oid": sha256(body), "size": len(body), "pointerSize": 128}
    return made


def handler(state: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].lstrip("/").replace("%2F", "/")
            for part, code in state.status.items():
                if part in path:
                    return self.answer(code, {})
            form = r"(api/(?:models/)?)?((?:datasets/)?[^/]+/[^/]+)/?(?:([^/]+)/([^/]+)/?(.*))?"
            asked, repository, verb, revision, name = re.fullmatch(form, path).groups()
            files = state.repositories.get(repository)
            if files is None:
                return self.answer(401, {"X-Error-Code": "RepoNotFound"})
            if revision not in (None, "main", "v1", COMMIT):
                return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            if asked:
                tree = [entry(name, body) for name, body in files.items()]
                about = {"id": "", "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}
                listed = tree if verb == "tree" else about
                kind = {"Content-Type": "application/json"}
                return self.answer(200, kind, json.dumps(listed).encode())
            assert revision == COMMIT, "the file of another commit is asked for"
            about, body = entry(name, files[name]), files[name]
            if state.damaged == name:
                body = body[:-1] + bytes([body[-1] ^ 1])
            end = state.cut if "lfs" in about else None
            if self.command == "GET":
                state.sent[name] += len(body[:end])
            tag = about.get("lfs", about)["oid"]
            self.answer(200, {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"'}, body, end)

        do_HEAD = do_GET

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
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
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


def test_sources_and_local_paths_are_told_apart(eqr, tmp_path):
    (tmp_path / "odd:name").mkdir()
    for text in ("folder", "a/b.pth", "./hf:a/b", "C:/data", str(tmp_path / "odd:name")):
        assert hub.parse(text, "model") is None
    uri = hub.parse("hf:a/b@refs/pr/3/x/y.pth", "model")
    assert (uri.id, uri.revision, uri.path_in_repo) == ("a/b", "refs/pr/3", "x/y.pth")
    uri = hub.parse("hub:eqr/maze-unique@v1", "model")
    assert (uri.revision, uri.path_in_repo) == ("v1", "maze-unique/eqr.pth")
    for text, said in (
        ("hf:a", "hf:OWNER/REPO[@REVISION][/PATH]"),
        ("hf:a/b@/c", "hf:OWNER/REPO[@REVISION][/PATH]"),
        ("hub:eqr-modl/x.pth", "did you mean 'eqr-model'"),
        ("hub:eqr/maze-uniqe", "did you mean 'eqr/maze-unique'"),
        ("https://huggingface.co/a/b", "hf:OWNER/REPO"),
    ):
        eqr("import-checkpoint", text, tmp_path / "out.safetensors").refused(text, said)


# ------------------------------------------------------------------------------------ data sets


def test_a_data_set_comes_whole_once_at_one_commit_and_says_which(eqr, served, extreme, tmp_path):
    words = ("data", "import", CSV, tmp_path / "out", "--train", "4", "--json")
    eqr(*words, "--subsample", "frist").refused("--subsample 'frist'")
    done = eqr(*words)
    assert done.code == 0 and not done.err, done.err
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_bytes(extreme[name])
    made = data.load(tmp_path / "out")
    assert made.digest == read(tmp_path, Sudoku(), train=4).digest
    files = {name: sha256(extreme[name]) for name in ("test.csv", "train.csv")}
    wanted = {"repository": "sapientinc/sudoku-extreme", "revision": COMMIT, "files": files}
    assert made.origin["hub"] == wanted and made.origin["source"] == CSV
    sizes = {name: len(extreme[name]) for name in files}
    assert served.sent == sizes, "no other file, and none again after the mistaken command"


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
    done.refused("maze-7x8", "did you mean 'data/maze-7x7'?")
    # The paper's own mazes, of which these stand in: by name, and as pinned or not at all.
    shape = {"kind": "maze", "height": 7, "width": 7, "path_min": 3}
    monkeypatch.setattr(datasets, "UNIQUE_TASK", shape)
    monkeypatch.setattr(datasets, "UNIQUE_SOURCE", "hub:eqr-data/maze-7x7")
    named = ("data", "import", "maze-unique", tmp_path / "named")
    eqr(*named).refused("train/all__inputs.npy: field sha256 is", "2922455815232dcb636ee45f")
    pins = {
        name: sha256(files[f"data/maze-7x7/{name}"])
        for name in datasets.NPY_FILES
        if "group" not in name
    }
    monkeypatch.setattr(datasets, "UNIQUE_PINS", pins)
    assert eqr(*named).code == 0
    assert data.load(tmp_path / "named").digest == data.load(tmp_path / "out").digest


def test_files_can_be_pinned(eqr, served, extreme, tmp_path):
    right, wrong = f"train.csv={sha256(extreme['train.csv'])}", f"train.csv={'0' * 64}"
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_bytes(extreme[name])
    for source in (CSV, tmp_path):
        words = ("data", "import", source, tmp_path / "out", "--overwrite", "--sha256")
        eqr(*words, wrong).refused("train.csv: field sha256 is", "--sha256")
        eqr(*words, "train.csv").refused("'train.csv' must look like name=value")
        eqr(*words, right.replace("train", "trian")).refused("trian", "did you mean 'train.csv'")
        assert eqr(*words, right).code == 0


# ---------------------------------------------------------------------------------- what goes wrong


def test_a_repository_revision_or_folder_that_is_not_there_is_named(eqr, served, extreme, tmp_path):
    out = tmp_path / "out"
    eqr("data", "import", "hf:sapientinc/sudoku-extrem", out).refused("sudoku-extrem: Repository")
    eqr("data", "import", f"{CSV}@v9", out).refused("sudoku-extreme@v9", "RevisionNotFound")
    eqr("data", "import", f"{CSV}/hard", out).refused("has no data set 'hard'")
    del extreme["test.csv"]
    eqr("data", "import", CSV, out).refused("test.csv")
    del extreme["train.csv"]
    eqr("data", "import", CSV, out).refused("has no data set")
    assert not out.exists()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"cut": 1000}, "run the same command again"),
        ({"damaged": "train.csv"}, "train.csv: field sha256 is"),  # of the right size
        ({"status": {"resolve/": 401}}, "hf auth login"),
        ({"status": {"api/": 500}}, "500"),
        ({"status": {"api/": 200}}, "check"),  # no hub answers so
    ],
    ids=str,
)
def test_a_fault_is_one_clear_line_and_the_same_command_works_once_it_is_over(
    eqr, served, extreme, tmp_path, fault, said
):
    words = ("data", "import", CSV, tmp_path / "out")
    vars(served).update(fault)
    eqr(*words).refused("sapientinc/sudoku-extreme: ", said, "run the same command again")
    assert not (tmp_path / "out").exists()
    vars(served).update(cut=None, damaged="", status={})
    assert eqr(*words).code == 0


def test_a_file_name_that_leaves_the_folder_is_refused(served, tmp_path):
    served.repositories["a/b"] = {"../../../../evil.pth": b"x"}
    with pytest.raises(hub.HubError, match=r"a/b.*evil\.pth"):
        hub.locate("hf:a/b", "model", pth.checkpoints, "checkpoint")
    assert not served.sent and not list(tmp_path.rglob("evil*"))


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
    assert "HF_ENDPOINT" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


# ---------------------------------------------------------------------------------- checkpoints


ARCH = {"hidden_size": 8, "num_heads": 2, "H_cycles": 2, "L_cycles": 3, "L_layers": 1,
        "mlp_t": False, "pos_encodings": "rope", "board_height": None}  # fmt: skip
#: As the official code stores it: neither seq_len nor vocab_size.
OFFICIAL = {"dataset": {"data_path": "data/maze-5x5-unique-1k"}, "arch": ARCH}


@pytest.fixture
def made(official_tensors) -> Callable[..., bytes]:
    """What makes an official checkpoint for 5×5 mazes, with or in place of its entries."""

    def made(**entries: object) -> bytes:
        torch.save({"model": official_tensors, **entries}, buffer := io.BytesIO())
        return buffer.getvalue()

    return made


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
def test_the_configuration_is_taken_from_where_it_is(
    eqr, served, made, tmp_path, monkeypatch, others, named, used
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local.json").write_text(json.dumps(OFFICIAL))
    files = {name: json.dumps(OFFICIAL if good else {}).encode() for name, good in others.items()}
    weights = made() if others else made(config=OFFICIAL)
    served.repositories["locuslab/EqR-model"] = {"maze/eqr.pth": weights, **files}
    extra = ("--config", named) if named else ()
    done = eqr("import-checkpoint", f"{EQR}/maze/eqr.pth", *extra)
    assert done.code == 0, done.err
    model = load_model("eqr.safetensors")
    assert (model.task.kind, model.task.height, model.task.width) == ("maze", 5, 5)
    about = model.meta["imported"]
    assert about["config"]["file"] == used and about["sha256"] == sha256(weights)
    origin = about["hub"]
    assert (origin["repository"], origin["revision"]) == ("locuslab/EqR-model", COMMIT)


def test_a_configuration_that_is_not_there_or_does_not_fit(eqr, served, made, tmp_path):
    files, out = {"maze/eqr.pth": made(), "maze/latest.pth": b""}, tmp_path / "out.safetensors"
    served.repositories["locuslab/EqR-model"] = files
    words = ("import-checkpoint", f"{EQR}/maze/eqr.pth", out)
    eqr(*words).refused("maze/eqr.pth: stores no configuration", "--config FILE", "no YAML or JSON")
    files |= {"maze/a.json": b"{}", "maze/b.yaml": b"{}"}
    eqr(*words).refused("--config FILE", "a.json, b.yaml")
    eqr(*words, "--config", f"{EQR}/maze/a.json").refused("maze/a.json: official conf")
    eqr(*words, "--config", f"{EQR}/maze/c.json").refused("did you mean 'maze/a.json'?")
    eqr("import-checkpoint", EQR, out).refused("maze/eqr.pth, maze/latest.pth")
    eqr("import-checkpoint", f"{EQR}/maze/eqt.pth", out).refused("did you mean 'maze/eqr.pth'?")
    eqr(*words, "--sha256", "0" * 64).refused("maze/eqr.pth: field sha256 is")
    assert not out.exists()


def test_released_weights_are_one_command(
    eqr, served, made, official_tensors, tmp_path, monkeypatch
):
    """The pinned file, its average and its own configuration, whatever else that may hold."""
    monkeypatch.chdir(tmp_path)
    mean = {key: 2 * value for key, value in official_tensors.items()}
    row = torch.arange(8.0)[None]  # in the real files too it has no average
    arch = {"name": "eqr@EqRModel", "puzzle_emb_len": 2, "puzzle_emb_ndim": 8, "of_theirs": 1}
    entries = {
        "model": official_tensors | {"_orig_mod.model.inner.puzzle_emb.weights": row},
        "config": OFFICIAL | {"arch": ARCH | arch},
    }
    body = made(**entries, ema={"mu": 0.999, "shadow": mean})
    served.repositories["locuslab/EqR-model"] = {"maze-unique/eqr.pth": body}
    name, words = "hub:eqr/maze-unique", ("import-checkpoint", "hub:eqr/maze-unique")
    eqr(*words).refused("maze-unique/eqr.pth: field sha256 is", weights.RELEASED[name])
    monkeypatch.setitem(weights.RELEASED, name, sha256(body))
    eqr(*words, "--sha256", "1" * 64).refused(f"{'1' * 64} is asked for")
    done = eqr(*words)
    assert done.code == 0 and done.out == "maze-unique.safetensors\n", done.err
    model = load_model("maze-unique.safetensors")
    assert torch.equal(model.model.prefix, row[0]) and model.model.config.prefix == 2
    head = mean["_orig_mod.model.inner.lm_head.weight"]
    assert torch.equal(model.model.lm_head.weight, head)
    assert model.meta["imported"]["hub"]["files"] == {"maze-unique/eqr.pth": sha256(body)}
    eqr(*words).refused("maze-unique.safetensors: exists already")
    eqr("import-checkpoint", f"{EQR}/maze-unique/eqr.pth").refused("of_theirs is not a known")
    eqr("data", "import", name, "out").refused("hub:eqr/maze-unique is not known")
    eqr("import-checkpoint", f"{name}@v9", "new").refused("RevisionNotFound")
    assert eqr("import-checkpoint", f"{name}@v1", "new").code == 0
