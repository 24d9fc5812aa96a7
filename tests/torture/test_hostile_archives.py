"""Archives of any bytes: nothing is written elsewhere, and no disk fills."""

import io
import os
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
from archives import GOOD, tar, zipped
from hostile import damaged, fuzzed, told
from hypothesis import given
from hypothesis import strategies as st

from ssl_jax.data.sources import archives

# From 3.12 on, Python warns where there is no filter.
PYTHONS = ["now"] + ["before 3.11.4"] * (sys.version_info < (3, 12))


@pytest.fixture(autouse=True, params=PYTHONS)
def python(request, monkeypatch):
  """Older Pythons have no filter, and extract whatever they are told to."""
  if request.param != "now":
    monkeypatch.delattr(tarfile, "data_filter")


def unpacked(root, name, content):
  """Unpacks; whatever comes of it, no file and no link leads elsewhere."""
  archive, folder = root / name, root / "in" / "to"
  archive.write_bytes(content)
  shutil.rmtree(root / "in", ignore_errors=True)
  folder.mkdir(parents=True)
  said = told(archives.unpack, archive, folder)
  assert {*root.iterdir()} - {archive} == {root / "in"}
  assert [*(root / "in").iterdir()] == [folder]
  for path in folder.rglob("*"):
    assert path.is_dir() or path.is_file()
    assert folder in Path(os.path.realpath(path)).parents
  if not said:
    told(archives.root_of, folder)
  archive.unlink()
  return said


OUTSIDE = ["../x", "/x", "a/../../x", "..", "a/..", "C:\\x", "..\\x", "//x"]
OUTSIDE += ["./../x", "\\x", "a/b/../../../../x", "/etc/passwd", "C:x"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_members_that_would_be_elsewhere(tmp_path, name):
  for kind in ("x.zip", "x.tar"):
    make = zipped if kind == "x.zip" else tar
    said = unpacked(tmp_path, kind, make([*GOOD, (name, b"evil")]))
    assert "outside" in said, (kind, said)


LINK, HARD = tarfile.SYMTYPE, tarfile.LNKTYPE
ODD_MEMBERS = {
  "a link out, and through it": [
    ("l", {"type": LINK, "linkname": "/tmp"}),
    ("l/x", b"evil"),
  ],
  "a link out": [("l", {"type": LINK, "linkname": "../../../secret"})],
  "a hard link out": [("l", {"type": HARD, "linkname": "/etc/passwd"})],
  "a circle": [
    ("l", {"type": LINK, "linkname": "m"}),
    ("m", {"type": LINK, "linkname": "l"}),
  ],
  "a link out by another": [
    ("d/e/f", {"type": LINK, "linkname": "../../g"}),
    ("g/x", b"x"),
    ("m", {"type": LINK, "linkname": "d/e/f/../../../secret"}),
  ],
  "itself": [("l", {"type": HARD, "linkname": "l"})],
  "a fifo": [("l", {"type": tarfile.FIFOTYPE})],
  "a device": [("l", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5})],
  "a link, and through it": [
    ("l", {"type": LINK, "linkname": "d"}),
    ("l/x", b"x"),
  ],
  "a link, and in its place": [
    ("l", {"type": LINK, "linkname": "d/b.wav"}),
    ("./l", b"x"),
  ],
  "twice": [("a.wav", b"other")],
  "a file and a folder": [("a.wav/x", b"x")],
  "a folder and a file": [("d", b"x")],
  "a long name": [("n" * 300, b"x")],
  "a long path": [("n/" * 3_000 + "x", b"x")],
  "deep": [("n/" * 150 + "x", b"x")],
  "no name": [("", b"x")],
  "bytes": [(os.fsdecode(b"\xff\xfe"), b"x")],
  "a line": [("a\nb", b"x")],
}


@pytest.mark.parametrize("what", ODD_MEMBERS)
def test_odd_members(tmp_path, what):
  secret = tmp_path.parent / "secret"
  secret.write_bytes(b"secret")
  root = tmp_path / "r"
  root.mkdir()
  message = unpacked(root, "x.tar", tar([*GOOD, *ODD_MEMBERS[what]]))
  if what.startswith("a link, and"):
    assert "through a link" in message
  for path in (root / "in").rglob("*"):
    assert path.is_dir() or b"secret" not in path.read_bytes()
    assert path.is_dir() or b"root:" not in path.read_bytes()


def octal(content, at, size, field):
  """A tar whose header at `at` says so in `field`; its checksum is right."""
  content = bytearray(content)
  place = {"size": 124, "devminor": 337}[field]
  value = (1 << 95 | size if size >= 0 else (1 << 96) + size).to_bytes(12)
  content[at + place : at + place + 12] = value
  content[at + 148 : at + 156] = b" " * 8
  total = sum(content[at : at + 512])
  content[at + 148 : at + 156] = b"%06o\0 " % total
  return bytes(content)


SIZES = [2**33, 2**60, 2**63, 2**80, -1, -512, -1024, -1536, -(2**60)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("at", [0, 1024])
def test_tars_of_absurd_sizes(tmp_path, size, at):
  said = unpacked(tmp_path, "x.tar", octal(tar(GOOD), at, size, "size"))
  assert said


@pytest.mark.parametrize("size", ["9" * 30, "-1024", "1e9", "x", "9" * 5_000])
@pytest.mark.parametrize("key", ["size", "GNU.sparse.realsize"])
def test_headers_of_absurd_sizes(tmp_path, size, key):
  info = tarfile.TarInfo("s.wav")
  info.pax_headers = {key: size, "GNU.sparse.major": "1"}
  info.pax_headers |= {"GNU.sparse.minor": "0", "GNU.sparse.name": "s.wav"}
  info.size = 1024
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as made:
    made.addfile(info, io.BytesIO(b"1\n0\n1\n".ljust(1024, b"\0")))
  unpacked(tmp_path, "x.tar", file.getvalue())


def test_copies_do_not_fill_the_disk(tmp_path, monkeypatch):
  links = [(f"l{i}", {"type": HARD, "linkname": "big"}) for i in range(9)]
  links += [(f"s{i}", {"type": LINK, "linkname": "big"}) for i in range(9)]
  usage = shutil.disk_usage(tmp_path)._replace(free=5 << 20)
  monkeypatch.setattr(shutil, "disk_usage", {tmp_path / "in" / "to": usage}.get)
  for kind, mode in (("x.tar", "w"), ("x.tar.gz", "w:gz")):
    message = unpacked(tmp_path, kind, tar([("big", bytes(1 << 20))] * 9, mode))
    assert "GB free" in message and "\n" not in message
    assert not any((tmp_path / "in" / "to").iterdir())
    members = [("big", bytes(1 << 20)), *links]
    assert not unpacked(tmp_path, kind, tar(members, mode))
    written = [p.stat() for p in (tmp_path / "in" / "to").iterdir()]
    assert len(written) == 19 and len({x.st_ino for x in written}) == 1


def test_a_declared_bomb_writes_nothing(tmp_path):
  """Each of 100 files is said to be of 4 GB."""
  files = [(f"a{i}", b"0") for i in range(100)]
  content = bytearray(zipped(files))
  at = 0
  while (at := content.find(b"PK\1\2", at + 1)) > 0:
    content[at + 24 : at + 28] = (2**32 - 2).to_bytes(4, "little")
  said = unpacked(tmp_path, "x.zip", bytes(content))
  assert "429 GB" in said and "free" in said
  assert not any((tmp_path / "in" / "to").iterdir())


@fuzzed
@given(st.data())
def test_archives_of_any_bytes(tmp_path_factory, data):
  root = tmp_path_factory.getbasetemp() / "archives"
  root.mkdir(exist_ok=True)
  modes = {"x.tar": "w", "x.tar.gz": "w:gz", "x.tar.xz": "w:xz"}
  kind = data.draw(st.sampled_from(["x.zip", *modes, "x.tar.bz2"]))
  modes["x.tar.bz2"] = "w:bz2"
  content = zipped(GOOD) if kind == "x.zip" else tar(GOOD, modes[kind])
  unpacked(root, kind, data.draw(damaged(content)))
