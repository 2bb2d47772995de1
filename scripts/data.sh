#!/usr/bin/env bash
# Prepares the data sets that Debian packages hold and says how a job names them. Installs what is missing; nothing else is fetched.
#   scripts/data.sh            checks Fashion-MNIST (60,000 + 10,000 images) where its package puts it
#   scripts/data.sh DIR        also unpacks its four IDX files into DIR, for `data: {source: idx, path: DIR}`
set -euo pipefail
case ${1:-} in -h|--help) sed -n '2,4p' "$0" | sed 's/^# \{0,1\}//'; exit 0 ;; esac
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
