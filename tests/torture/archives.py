"""Archives as bytes."""

import io
import tarfile
import zipfile

GOOD = [("a.wav", b"1234"), ("d/b.wav", b"56" * 999), ("m.tsv", b".\na.wav")]


def tar(members, mode="w"):
  """Of (name, content or TarInfo fields)."""
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode=mode) as made:
    for name, what in members:
      info = tarfile.TarInfo(name)
      content = b""
      if isinstance(what, bytes):
        info.size, content = len(what), what
      else:
        for key, value in what.items():
          setattr(info, key, value)
      made.addfile(info, io.BytesIO(content) if content else None)
  return file.getvalue()


def zipped(members, **options):
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", **options) as made:
    for name, content in members:
      made.writestr(name, content)
  return file.getvalue()
