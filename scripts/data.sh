#!/usr/bin/env bash
# Prepares the data sets that Debian packages hold and says how a job names them. Installs what is missing; nothing else is fetched.
#   scripts/data.sh            checks Fashion-MNIST (60,000 + 10,000 images) where its package puts it
#   scripts/data.sh DIR        also unpacks its four IDX files into DIR, for `data: {source: idx, path: DIR}`
#   scripts/data.sh languages DIR   writes manual pages (section 1) in four languages into DIR, a file each of at most 600,000 characters, with a
#                              manifest; for `data: {source: text, path: DIR, partition: {kind: by_file}}`
#   scripts/data.sh fonts DIR  draws digits and letters (62 classes, 28x28) in handwriting-like fonts into DIR, a file each, with a manifest: a font is
#                              a writer, as in FEMNIST; for `data: {source: safetensors, path: DIR, partition: {kind: by_file}}`
set -euo pipefail
case ${1:-} in -h|--help) sed -n '2,8p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;; esac

# fetched KIND PACKAGE…: the packages, unpacked, each in a folder of $work.
fetched() {
  local kind=$1
  shift
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  if ! (cd "$work" && apt-get -q download "$@") >"$work/log" 2>&1; then
    cat "$work/log" >&2
    echo "data: could not download $*; remedy: apt-get update, check the network, then run scripts/data.sh $kind again" >&2
    exit 1
  fi
  for package in "$@"; do dpkg -x "$work/$package"_*.deb "$work/$package"; done
}

# installed PACKAGE WHAT…: the Debian package is there, or is installed.
installed() {
  if dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null | grep -qx installed; then return; fi
  echo "data: installing the Debian package $1 ($2)"
  local root=()
  if [ "$(id -u)" -ne 0 ]; then root=(sudo); fi
  if ! { "${root[@]}" apt-get -q update && "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends "$1"; }; then
    echo "data: could not install $1; remedy: check the network and /etc/apt/sources.list, then run scripts/data.sh again" >&2
    exit 1
  fi
}

# Of the Python below: what a package is called and which version came.
manifest='
import json, pathlib, subprocess
def source_of(work, package):
    deb = next(work.glob(f"{package}_*.deb"))
    version = subprocess.run(["dpkg-deb", "-f", str(deb), "Version"], capture_output=True, text=True, check=True).stdout.strip()
    return {"package": package, "version": version}
'

if [ "${1:-}" = languages ]; then
  target=${2:?usage: scripts/data.sh languages DIR}
  packages=(manpages-de manpages-fr manpages-pl manpages-ru)
  fetched languages "${packages[@]}"
  mkdir -p "$target"
  python3 - "$work" "$target" "${packages[@]}" < <(printf '%s\n' "$manifest"; cat <<'CONVERT'
import gzip, hashlib, sys

MOST = 600_000  # characters of a language; Russian has an eighth of the others'
work, target = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
manifest = []
for package in sys.argv[3:]:
    language = package.split("-")[1]
    text = ""
    for page in sorted((work / package).glob(f"usr/share/man/{language}/man1/*.1.gz")):
        if page.is_symlink():
            continue
        lines = gzip.decompress(page.read_bytes()).decode("utf-8", "replace").splitlines()
        text += "\n".join(line for line in lines if line and line[0] not in ".'\\") + "\n"  # what is left of markup is little
    text = text[:MOST]
    (target / f"{language}.txt").write_text(text, encoding="utf-8")
    manifest.append({"file": f"{language}.txt", "characters": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest(), **source_of(work, package),
                     "licence": "GPL-3+ (see the package's copyright file)"})
(target / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
CONVERT
)
  echo "data: manual pages in de, fr, pl, ru are in $target; in a job: data: {source: text, path: $target, partition: {kind: by_file}}"
  exit 0
fi

if [ "${1:-}" = fonts ]; then
  target=${2:?usage: scripts/data.sh fonts DIR}
  packages=(fonts-breip fonts-bwht fonts-comic-neue fonts-dancingscript fonts-dkg-handwriting fonts-femkeklaver fonts-humor-sans fonts-kaushanscript fonts-kristi
            fonts-leckerli-one fonts-radisnoir fonts-rufscript)
  installed python3-numpy "30 MB"
  installed python3-pil "3 MB"
  fetched fonts "${packages[@]}"
  mkdir -p "$target"
  /usr/bin/python3 - "$work" "$target" "${packages[@]}" < <(printf '%s\n' "$manifest"; cat <<'CONVERT'
import hashlib, string, sys
import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE, EACH = 28, 40
GLYPHS = string.digits + string.ascii_uppercase + string.ascii_lowercase  # class = place here, as in EMNIST's by_class


def drawn(font, glyph, rng):
    """The glyph as ink 0 to 255, turned, shrunk and moved by a little."""
    page = Image.new("L", (4 * SIZE, 4 * SIZE), 0)
    ImageDraw.Draw(page).text((2 * SIZE, 2 * SIZE), glyph, fill=255, font=font, anchor="mm")
    page = page.rotate(rng.uniform(-8, 8), resample=Image.BILINEAR)
    box = page.getbbox()
    if box is None:
        return None
    ink = page.crop(box)
    scale = rng.uniform(17, 21) / max(ink.size)
    ink = ink.resize([max(1, round(scale * extent)) for extent in ink.size], Image.BILINEAR)
    image = Image.new("L", (SIZE, SIZE), 0)
    image.paste(ink, [round((SIZE - extent) / 2 + rng.uniform(-2, 2)) for extent in ink.size])
    return np.asarray(image)


def write(path, x, y):
    """safetensors: x U8 [N, 1, 28, 28], y U8 [N]."""
    header = {"x": {"dtype": "U8", "shape": list(x.shape), "data_offsets": [0, x.nbytes]}, "y": {"dtype": "U8", "shape": list(y.shape), "data_offsets": [x.nbytes, x.nbytes + y.nbytes]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    content = len(text).to_bytes(8, "little") + text + x.tobytes() + y.tobytes()
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


work, target = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
manifest, families = [], set()
for package in sys.argv[3:]:
    files = [path for path in (work / package).rglob("*") if path.suffix.lower() in (".ttf", ".otf") and path.is_file()]
    for file in sorted(files, key=lambda path: ("regular" not in path.stem.lower(), len(path.stem), path.stem)):
        font = ImageFont.truetype(str(file), 2 * SIZE)
        if font.getname()[0].lower() in families:
            continue  # bold, italic or another format of a hand that is there already
        missing = font.getmask("\uffff").getbbox() and bytes(font.getmask("\uffff"))
        if any(not font.getmask(glyph).getbbox() or bytes(font.getmask(glyph)) == missing for glyph in GLYPHS):
            continue  # a face without some of the 62
        families.add(font.getname()[0].lower())
        rng = np.random.default_rng(list(file.stem.encode()))
        images = [(drawn(font, glyph, rng), label) for label, glyph in enumerate(GLYPHS) for _ in range(EACH)]
        order = rng.permutation(len(images))
        x, y = np.stack([images[i][0] for i in order])[:, None], np.array([images[i][1] for i in order], np.uint8)
        name = f"{file.stem}.safetensors"
        manifest.append({"file": name, "examples": len(y), "sha256": write(target / name, x, y), **source_of(work, package), "licence": "see the package's copyright file"})
        print(f"data: {name}: {len(y)} images of {len(GLYPHS)} glyphs")
(target / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
CONVERT
)
  echo "data: one file a font is in $target; in a job: data: {source: safetensors, path: $target, partition: {kind: by_file}} and 62 classes"
  exit 0
fi

package=dataset-fashion-mnist
folder=/usr/share/datasets/fashion-mnist
target=${1:-}

installed "$package" "30 MB, under a minute"

# name, bytes of the inflated file: header and elements
files=("train-images-idx3-ubyte 47040016" "train-labels-idx1-ubyte 60008" "t10k-images-idx3-ubyte 7840016" "t10k-labels-idx1-ubyte 10008")
for entry in "${files[@]}"; do
  read -r name bytes <<<"$entry"
  got=$(gzip -dc "$folder/$name.gz" 2>/dev/null | wc -c) || got=0
  if [ "$got" != "$bytes" ]; then
    echo "data: $folder/$name.gz: expected $bytes bytes inflated, got $got; remedy: apt-get install --reinstall $package" >&2
    exit 1
  fi
  if [ -n "$target" ]; then
    mkdir -p "$target"
    gzip -dc "$folder/$name.gz" >"$target/$name.part"
    mv "$target/$name.part" "$target/$name"
  fi
done
echo "data: Fashion-MNIST is complete in $folder; in a job: data: {source: fashion-mnist}"
if [ -n "$target" ]; then echo "data: its IDX files are in $target; in a job: data: {source: idx, path: $target}"; fi
