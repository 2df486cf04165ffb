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
from eqr.imports.weights import import_official
from eqr.tasks.maze import Maze
from eqr.tasks.sudoku import Sudoku

COMMIT = "5e1e8170a1a10ae352904758c34fc9bd6a35a41b"
CSV = "hub:sudoku-extreme"
EQR = "hf:locuslab/EqR-model"


@dataclass
class Hub:
    """What the stand-in serves, how it misbehaves, and what it was asked."""

    url: str = ""
    cdn: str = ""  # the same server under another host name
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)  # path -> content
    cut: int | None = None  # break the connection after so many bytes of a file
    damaged: str = ""  # a file whose content gets a wrong byte
    html: bool = False  # answer with a page for people
    status: dict[str, int] = field(default_factory=dict)  # a part of the address -> how to refuse
    sent: Counter = field(default_factory=Counter)  # path -> bytes
    tokens: dict[str, str | None] = field(default_factory=dict)  # host -> what it was shown

    def add(self, kind: str, repo: str, files: dict[str, bytes]) -> None:
        prefix = "datasets/" if kind == "dataset" else ""
        self.repositories[prefix + repo] = files


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


def handler(state: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.tokens[self.headers["Host"].split(":")[0]] = self.headers["Authorization"]
            path = self.path.partition("?")[0].lstrip("/").replace("%2F", "/")
            for part, code in state.status.items():
                if part in path:
                    return self.refuse(code, "")
            form = r"(api/(?P<api>models|datasets)/|(?P<cdn>cdn/)?)(?P<repo>(datasets/)?\S+?/[^/]+)"
            match = re.match(form + r"(?P<rest>/.*)?$", path)
            repo = match["repo"] if match["api"] != "datasets" else f"datasets/{match['repo']}"
            files = state.repositories.get(repo)
            if files is None:
                return self.refuse(401, "RepoNotFound")
            verb, _, rest = (match["rest"] or "").strip("/").partition("/")
            revision, _, name = rest.partition("/")
            if revision not in ("", "main", "v1", COMMIT):
                return self.refuse(404, "RevisionNotFound")
            if match["api"] and verb in ("", "revision"):
                return self.answer({"id": match["repo"], "sha": COMMIT, "siblings": []})
            if match["api"]:
                return self.answer([entry(name, body) for name, body in files.items()])
            assert revision == COMMIT, "the file of another commit is asked for"
            self.send_file(path, name, files[name], bool(match["cdn"]))

        do_HEAD = do_GET

        def send_file(self, path: str, name: str, body: bytes, cdn: bool) -> None:
            about = entry(name, body)
            elsewhere = large(name) and not cdn
            self.send_response(302 if elsewhere else 200)
            if elsewhere:
                self.send_header("Location", f"{state.cdn}/cdn/{path}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{about["oid"]}"')
            if large(name):
                self.send_header("X-Linked-ETag", f'"{about["lfs"]["oid"]}"')
                self.send_header("X-Linked-Size", str(len(body)))
            self.send_header("Content-Length", "0" if elsewhere else str(len(body)))
            self.end_headers()
            if elsewhere or self.command == "HEAD":
                return
            if state.damaged == name:
                body = body[:-1] + bytes([body[-1] ^ 1])
            end = len(body) if state.cut is None or not large(name) else state.cut
            self.close_connection = end < len(body)
            self.wfile.write(body[:end])
            state.sent[name] += min(end, len(body))

        def refuse(self, code: int, why: str) -> None:
            self.send_response(code)
            self.send_header("X-Error-Code", why)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def answer(self, values: object) -> None:
            body = b"<html>" if state.html else json.dumps(values).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_) -> None:
            pass

    return Handler


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A stand-in that HF_ENDPOINT points to, with an empty cache; no waits between attempts."""
    state = Hub()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(state)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        state.url, state.cdn = (
            f"http://{h}:{server.server_port}" for h in ("127.0.0.1", "localhost")
        )
        monkeypatch.setenv("HF_ENDPOINT", state.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("time.sleep", lambda _: None)
        yield state
        server.shutdown()


@pytest.fixture(scope="module")
def tables() -> dict[str, bytes]:
    """train.csv and test.csv of 30 puzzles each, in the schema of Sudoku-Extreme."""
    task, files = Sudoku(), {"README.md": b"# Sudoku\n"}
    pool = task.generate(60, seed=3)
    for split, rows in (("train", range(30)), ("test", range(30, 60))):
        lines = ["source,question,answer,rating"]
        lines += [f"x,{task.format(pool.inputs[r])},{task.format(pool.labels[r])},1" for r in rows]
        files[f"{split}.csv"] = "\n".join(lines).encode() + b"\n"
    return files


@pytest.fixture
def extreme(served, tables) -> dict[str, bytes]:
    """The files of Sudoku-Extreme as the stand-in has them."""
    files = dict(tables)
    served.add("dataset", "sapientinc/sudoku-extreme", files)
    return files


def refused(done, *said: str) -> None:
    """The command ended in one clear line."""
    assert done.code == 1 and done.out == "", done.out
    assert done.err.startswith("error: ") and all(word in done.err for word in said), done.err
    assert len(done.err.strip().splitlines()) == 1, done.err


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
        ("hf:locuslab", "must be written hf:OWNER/REPO[@REVISION][/PATH]"),
        ("hf://a/b", "must be written"),
        ("hf:models/a/b", "must be written"),
        ("hf:a/b@/c", "must be written"),
        ("hf:a/b/../../c", "must be written"),
        ("hub:eqr-modl/x.pth", "did you mean 'eqr-model'"),
        ("https://huggingface.co/a/b", "no such file; what is on the hub is written hf:"),
    ],
)
def test_a_source_that_is_misspelt_is_refused_before_anything_is_asked(eqr, tmp_path, text, said):
    refused(eqr("import-checkpoint", text, tmp_path / "out.safetensors"), said)


# ------------------------------------------------------------------------------------ data sets


def test_a_data_set_comes_whole_at_one_commit_and_says_which(eqr, served, extreme, tmp_path):
    done = eqr("data", "import", CSV, tmp_path / "out", "--train", "9", "--json")
    assert done.code == 0 and not done.err, done.err
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_bytes(extreme[name])
    made = data.load(tmp_path / "out")
    assert made.digest == read(tmp_path, Sudoku(), train=9).digest
    assert made.origin["source"] == "hf:sapientinc/sudoku-extreme"
    files = {name: sha256(extreme[name]) for name in ("test.csv", "train.csv")}
    wanted = {"repository": "sapientinc/sudoku-extreme", "revision": COMMIT, "files": files}
    assert made.origin["hub"] == wanted
    assert served.sent == {name: len(extreme[name]) for name in files}, "and no other file"
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
    served.add("dataset", "locuslab/EqR-data", files)
    words = ("--kind", "maze", "-s", "height=7", "-s", "width=7", "-s", "path_min=3")
    done = eqr("data", "import", "hub:eqr-data/maze-7x7", tmp_path / "out", *words)
    assert done.code == 0, done.err
    assert data.load(tmp_path / "out").digest == read(local, task).digest
    assert len(served.sent) == 6 and not any("identifiers" in name for name in served.sent)
    refused(
        eqr("data", "import", "hub:eqr-data/maze-7x8", tmp_path / "no", *words),
        "has no data set 'maze-7x8'; did you mean 'data/maze-7x7'?",
    )
    # The paper's own mazes, of which these stand in: by name, and as pinned or not at all.
    shape = {"kind": "maze", "height": 7, "width": 7, "path_min": 3}
    monkeypatch.setattr(datasets, "UNIQUE_TASK", shape)
    monkeypatch.setattr(datasets, "UNIQUE_SOURCE", "hub:eqr-data/maze-7x7")
    named = ("data", "import", "maze-unique", tmp_path / "named")
    refused(eqr(*named), "train/all__inputs.npy: field sha256 is", "2922455815232dcb636ee45f")
    pins = {name: sha256(files[f"data/maze-7x7/{name}"]) for name in datasets.NPY_FILES}
    monkeypatch.setattr(datasets, "UNIQUE_PINS", pins)
    assert eqr(*named).code == 0
    assert data.load(tmp_path / "named").digest == data.load(tmp_path / "out").digest


def test_what_came_whole_is_not_fetched_again(eqr, served, extreme, tmp_path):
    """Neither after a mistake in the command nor after a download that was cut."""
    words = ("data", "import", CSV, tmp_path / "out")
    assert "must be 'random' or 'first'" in eqr(*words, "--subsample", "frist").err
    served.sent.clear()
    assert eqr(*words).code == 0 and not served.sent


def test_a_download_that_was_cut_is_one_clear_line_and_can_be_repeated(
    eqr, served, extreme, tmp_path
):
    served.cut = 1000
    words = ("data", "import", CSV, tmp_path / "out")
    refused(eqr(*words), "run the same command again")
    assert not (tmp_path / "out").exists()
    served.cut = None
    assert eqr(*words).code == 0
    assert data.verify(tmp_path / "out")["train"] == 30


def test_a_damaged_file_is_one_clear_line_and_does_not_stay(eqr, served, extreme, tmp_path):
    """Its size is right, only its hash tells; once the server is well, the same command works."""
    served.damaged = "train.csv"
    done = eqr("data", "import", CSV, tmp_path / "out")
    refused(done, "train.csv: field sha256 is", sha256(extreme["train.csv"]), "again")
    assert not (tmp_path / "out").exists()
    served.damaged = ""
    assert eqr("data", "import", CSV, tmp_path / "out").code == 0


def test_files_can_be_pinned(eqr, served, extreme, tmp_path):
    right, wrong = f"train.csv={sha256(extreme['train.csv'])}", f"train.csv={'0' * 64}"
    words = ("data", "import", CSV, tmp_path / "out", "--sha256")
    refused(eqr(*words, wrong), "train.csv: field sha256 is")
    assert not served.sent, "the hub's own word was enough"
    refused(eqr(*words, "train.csv"), "must be FILE=HEX")
    refused(eqr(*words, "train.csv=12"), "must be 64 hexadecimal digits")
    refused(eqr(*words, right.replace("train", "trian")), "did you mean 'train.csv'")
    assert eqr(*words, right).code == 0
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_bytes(extreme[name])
    local = ("data", "import", tmp_path, tmp_path / "local", "--sha256")
    refused(eqr(*local, wrong), "train.csv: field sha256 is")
    assert eqr(*local, right).code == 0


# ---------------------------------------------------------------------------------- what goes wrong


def test_a_repository_revision_or_folder_that_is_not_there_is_named(eqr, served, extreme, tmp_path):
    out = tmp_path / "out"
    done = eqr("data", "import", "hf:sapientinc/sudoku-extrem", out)
    refused(done, "hf:sapientinc/sudoku-extrem: RepositoryNotFound", "HF_TOKEN")
    refused(eqr("data", "import", f"{CSV}@v9", out), "RevisionNotFound", "check owner, name")
    refused(eqr("data", "import", f"{CSV}/hard", out), "has no data set 'hard'")
    del extreme["test.csv"]
    refused(eqr("data", "import", CSV, out), "has no file test.csv")
    del extreme["train.csv"]
    refused(eqr("data", "import", CSV, out), "this repository has no data set")
    assert not served.sent and not out.exists()


@pytest.mark.parametrize(
    ("where", "code", "said"),
    [("resolve/", 401, "hf auth login"), ("cdn/", 403, "403"), ("tree/", 500, "again")],
)
def test_a_refusal_is_one_clear_line(eqr, served, extreme, tmp_path, where, code, said):
    served.status = {where: code}
    refused(eqr("data", "import", CSV, tmp_path / "out"), "hf:sapientinc/sudoku-extreme: ", said)
    assert not (tmp_path / "out").exists()


def test_a_server_that_is_no_hub_is_one_clear_line(eqr, extreme, served):
    served.html = True
    refused(eqr("data", "import", CSV, "out"), "check the network and HF_ENDPOINT")


def test_a_file_name_that_leaves_the_folder_is_refused(served, tmp_path):
    served.add("model", "a/b", {"../../evil.pth": b"x"})
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


def pth(**entries: object) -> bytes:
    """An official checkpoint for 5×5 mazes."""
    shapes = {
        "embed_tokens.embedding_weight": (6, 8),
        "lm_head.weight": (6, 8),
        "q_head.weight": (2, 8),
        "q_head.bias": (2,),
        "L_level.layers.0.self_attn.qkv_proj.weight": (24, 8),
        "L_level.layers.0.self_attn.o_proj.weight": (8, 8),
        "L_level.layers.0.mlp.gate_up_proj.weight": (512, 8),
        "L_level.layers.0.mlp.down_proj.weight": (8, 256),
    }
    draw = torch.Generator().manual_seed(0)
    model = {
        f"_orig_mod.model.inner.{k}": torch.randn(s, generator=draw) for k, s in shapes.items()
    }
    torch.save({"model": model, **entries}, buffer := io.BytesIO())
    return buffer.getvalue()


def test_a_golden_checkpoint_from_the_hub_is_the_local_one(eqr, served, shared, tmp_path):
    files, local = {}, shared / "golden" / "sudoku_mixer"
    for suffix in (".pth", ".json"):
        files[f"sudoku-extreme/eqr{suffix}"] = local.with_suffix(suffix).read_bytes()
    served.add(
        "model", "locuslab/EqR-model", {"README.md": b"#", "all_config.yaml": b"{}", **files}
    )
    words = ("import-checkpoint", f"{EQR}@v1/sudoku-extreme/eqr.pth", tmp_path / "hub.safetensors")
    done = eqr(*words)
    assert done.code == 0 and "configuration: sudoku-extreme/eqr.json" in done.err, done.err
    assert eqr("import-checkpoint", f"{local}.pth", tmp_path / "local.safetensors").code == 0
    one, two = (load_model(tmp_path / f"{name}.safetensors") for name in ("hub", "local"))
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, two.model.state_dict()[name]), name
    imported = one.meta["imported"]
    assert (
        imported["sha256"]
        == sha256(files["sudoku-extreme/eqr.pth"])
        == two.meta["imported"]["sha256"]
    )
    assert imported["hub"] == {
        "repository": "locuslab/EqR-model",
        "revision": COMMIT,
        "files": {name: sha256(body) for name, body in files.items()},
    }


@pytest.mark.parametrize(
    ("others", "words", "used"),
    [
        ({}, "STORED", "maze/eqr.pth"),
        ({"maze/all_config.yaml": 1, "config.json": 0}, "", "maze/all_config.yaml"),
        ({"maze/eqr.yaml": 1, "maze/data.json": 0}, "", "maze/eqr.yaml"),
        ({"all_config.yaml": 1, "config.json": 0}, "", "all_config.yaml"),
        ({"maze/a.json": 1, "maze/b.json": 0}, f"--config {EQR}/maze/a.json", "maze/a.json"),
        ({"maze/a.json": 1, "maze/b.json": 0}, "--config LOCAL", "LOCAL"),
    ],
    ids=["stored", "beside", "same name", "above", "named", "local"],
)
def test_the_configuration_is_found(eqr, served, tmp_path, others, words, used):
    stored = {"config": OFFICIAL} if words == "STORED" else {}
    files = {name: json.dumps(OFFICIAL if good else {}).encode() for name, good in others.items()}
    served.add("model", "locuslab/EqR-model", {"maze/eqr.pth": pth(**stored), **files})
    (tmp_path / "local.json").write_text(json.dumps(OFFICIAL))
    words, used = (t.replace("LOCAL", str(tmp_path / "local.json")) for t in (words, used))
    out = tmp_path / "maze.safetensors"
    extra = [] if words == "STORED" else words.split()
    done = eqr("import-checkpoint", f"{EQR}/maze/eqr.pth", out, *extra)
    assert done.code == 0, done.err
    found = load_model(out)
    assert (found.task.kind, found.task.height, found.task.width) == ("maze", 5, 5)
    assert found.meta["imported"]["config"]["file"] == used
    (tmp_path / "eqr.pth").write_bytes(pth())
    import_official(tmp_path / "eqr.pth", tmp_path / "local.safetensors", OFFICIAL)
    local = load_model(tmp_path / "local.safetensors").model.state_dict()
    assert all(torch.equal(value, local[name]) for name, value in found.model.state_dict().items())


def test_a_configuration_that_is_not_found_or_does_not_fit(eqr, served, tmp_path):
    files, out = {"maze/eqr.pth": pth(), "maze/latest.pth": b""}, tmp_path / "out.safetensors"
    served.add("model", "locuslab/EqR-model", files)
    words = ("import-checkpoint", f"{EQR}/maze/eqr.pth", out)
    refused(eqr(*words), "stores no configuration; give it with --config FILE (no YAML or JSON")
    files |= {"maze/a.json": b"{}", "maze/b.yaml": b"{}"}
    refused(eqr(*words), "--config FILE (there is maze/a.json, maze/b.yaml)")
    refused(eqr(*words, "--config", f"{EQR}/maze/a.json"), "maze/a.json: official conf")
    refused(eqr(*words, "--config", f"{EQR}/maze/c.json"), "did you mean 'maze/a.json'?")
    refused(
        eqr("import-checkpoint", EQR, out), "name the checkpoint: maze/eqr.pth, maze/latest.pth"
    )
    refused(eqr("import-checkpoint", f"{EQR}/maze/eqt.pth", out), "did you mean 'maze/eqr.pth'?")
    refused(eqr(*words, "--sha256", "0" * 64), "field sha256 is")
    assert not out.exists()


def test_released_weights_are_one_command(eqr, served, tmp_path, monkeypatch):
    """The pinned file, its average and its own configuration, whatever else that may hold."""
    monkeypatch.chdir(tmp_path)
    content = torch.load(io.BytesIO(pth()), weights_only=True)
    mean = {key: 2 * value for key, value in content["model"].items()}
    row = torch.arange(8.0)[None]  # in the real files too it has no average
    content["model"]["_orig_mod.model.inner.puzzle_emb.weights"] = row
    arch = {"name": "eqr@EqRModel", "puzzle_emb_len": 2, "puzzle_emb_ndim": 8, "of_theirs": 1}
    content["config"] = OFFICIAL | {"arch": OFFICIAL["arch"] | arch}
    torch.save(content, plain := io.BytesIO())
    torch.save(content | {"ema": {"mu": 0.999, "shadow": mean}}, whole := io.BytesIO())
    files = {f"{name}.pth": body.getvalue() for name, body in (("plain", plain), ("x/eqr", whole))}
    served.add("model", "locuslab/EqR-model", files)
    for name in ("eqr/sudoku-extreme", "eqr/maze-unique"):
        words = ("import-checkpoint", f"hub:{name}")
        monkeypatch.setitem(hub.RELEASED, name, ("x/eqr.pth", "0" * 64))
        refused(eqr(*words), "x/eqr.pth: field sha256 is", f"{'0' * 64} is asked for")
        monkeypatch.setitem(hub.RELEASED, name, ("plain.pth", sha256(files["plain.pth"])))
        refused(eqr(*words), "plain.pth: stores no average ('ema')")
        monkeypatch.setitem(hub.RELEASED, name, ("x/eqr.pth", sha256(files["x/eqr.pth"])))
        refused(eqr(*words, "--sha256", "1" * 64), f"{'1' * 64} is asked for")
        done = eqr(*words)
        assert done.code == 0 and done.out == f"{name[4:]}.safetensors\n", done.err
        made = load_model(f"{name[4:]}.safetensors")
        assert torch.equal(made.model.prefix, row[0]) and made.model.config.prefix == 2
        assert torch.equal(made.model.lm_head.weight, mean["_orig_mod.model.inner.lm_head.weight"])
        assert made.meta["imported"]["hub"]["files"] == {"x/eqr.pth": sha256(files["x/eqr.pth"])}
        refused(eqr(*words), "exists already")
    assert set(served.sent) == {"plain.pth", "x/eqr.pth"}
    refused(eqr("import-checkpoint", f"{EQR}/x/eqr.pth"), "of_theirs is neither used here")
    refused(eqr("import-checkpoint", "hub:eqr/maze-uniqe"), "did you mean 'eqr/maze-unique'?")
    refused(eqr("data", "import", "hub:eqr/maze-unique", "out"), "is not known")
    refused(eqr("import-checkpoint", "hub:eqr/maze-unique@v9", "new"), "RevisionNotFound")
    assert eqr("import-checkpoint", "hub:eqr/maze-unique@v1", "new").code == 0


class Command:
    """An object whose unpickling runs a command."""

    def __reduce__(self):
        return os.system, ("true",)


def test_a_pickle_from_the_hub_is_not_executed(eqr, served, tmp_path):
    served.add("model", "a/b", {"x.pth": pth(config=OFFICIAL, trap=Command())})
    done = eqr("import-checkpoint", "hf:a/b/x.pth", tmp_path / "out.safetensors")
    refused(done, "x.pth: refused, reading it would execute a pickle")
    assert not (tmp_path / "out.safetensors").exists()
