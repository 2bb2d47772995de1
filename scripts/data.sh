#!/usr/bin/env bash
# Prepares the data sets that Debian packages hold and says how a job names them. Installs what is missing; nothing else is fetched.
#   scripts/data.sh            checks Fashion-MNIST (60,000 + 10,000 images) where its package puts it
#   scripts/data.sh DIR        also unpacks its four IDX files into DIR, for `data: {source: idx, path: DIR}`
#   scripts/data.sh languages DIR   writes manual pages (section 1) in four languages into DIR, a file each of at most 600,000 characters, with a
#                              manifest; for `data: {source: text, path: DIR, partition: {kind: by_file}}`
set -euo pipefail
case ${1:-} in -h|--help) sed -n '2,6p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;; esac

if [ "${1:-}" = languages ]; then
  target=${2:?usage: scripts/data.sh languages DIR}
  packages=(manpages-de manpages-fr manpages-pl manpages-ru)
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  if ! (cd "$work" && apt-get -q download "${packages[@]}") >"$work/log" 2>&1; then
    cat "$work/log" >&2
    echo "data: could not download ${packages[*]}; remedy: apt-get update, check the network, then run scripts/data.sh languages again" >&2
    exit 1
  fi
  for package in "${packages[@]}"; do dpkg -x "$work/$package"_*.deb "$work/$package"; done
  mkdir -p "$target"
  python3 - "$work" "$target" "${packages[@]}" <<'CONVERT'
import gzip, hashlib, json, pathlib, subprocess, sys

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
    deb = next(work.glob(f"{package}_*.deb"))
    version = subprocess.run(["dpkg-deb", "-f", str(deb), "Version"], capture_output=True, text=True, check=True).stdout.strip()
    manifest.append({"file": f"{language}.txt", "characters": len(text), "sha256": hashlib.sha256(text.encode()).hexdigest(), "package": package,
                     "version": version, "licence": "GPL-3+ (see the package's copyright file)"})
(target / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
CONVERT
  echo "data: manual pages in de, fr, pl, ru are in $target; in a job: data: {source: text, path: $target, partition: {kind: by_file}}"
  exit 0
fi

package=dataset-fashion-mnist
folder=/usr/share/datasets/fashion-mnist
target=${1:-}

if ! dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed; then
  echo "data: installing the Debian package $package (30 MB, under a minute)"
  root=()
  if [ "$(id -u)" -ne 0 ]; then root=(sudo); fi
  if ! { "${root[@]}" apt-get -q update && "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends "$package"; }; then
    echo "data: could not install $package; remedy: check the network and /etc/apt/sources.list, then run scripts/data.sh again" >&2
    exit 1
  fi
fi

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
