#!/usr/bin/env bash
# Real English text (and Python sources) from the distribution's own packages, as JSON lines by domain.
#
#   scripts/fetch_corpus.sh [DIR=corpus] [--keep-packages]
#
# Downloads packages without installing them, unpacks them beside the output, cleans the text and writes
#   DIR/<domain>/<package>.jsonl   one {"text": …} per line
#   DIR/LICENSES.tsv               package, version, domain, file, documents, bytes, SHA-256, licence, source
#   DIR/.licenses/<package>        the package's own copyright file
# Run again it verifies what is there and does nothing else. Nothing of it belongs into a repository.
# Needs: apt-get, dpkg-deb, gzip, python3; about 0.4 GB while it runs and 0.12 GB after.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=corpus
keep=false
for argument in "$@"; do
  case $argument in
    --keep-packages) keep=true ;;
    -h | --help) sed -n '2,11s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    -*) echo "fetch_corpus.sh: unknown option $argument" >&2; exit 2 ;;
    *) dir=$argument ;;
  esac
done

# The smallest total worth training on, and the packages with what their copyright files say.
least_bytes=60000000
packages=(
  "dict-gcide|GPL-2+"
  "dict-foldoc|GFDL-NIV-1.1+"
  "dict-jargon|text: public domain; package: GPL-2+"
  "dict-vera|GFDL-NIV-1.1+"
  "bible-kjv-text|text: public domain; package: GPL-2+"
  "wordnet-base|WordNet (permissive)"
  "debian-reference-en|GPL-2+"
  "debian-policy|GPL-2+ and notices (see .licenses)"
  "developers-reference|GPL-2+"
  "harden-doc|GPL-2+"
  "debian-faq|copyleft with notice (see .licenses)"
  "perl-doc|GPL-1+ or Artistic, and compatible (see .licenses)"
  "git-doc|GPL-2 and compatible (see .licenses)"
  "manpages|mixed free (see .licenses)"
  "manpages-dev|mixed free (see .licenses)"
  "linux-doc|GPL-2 and compatible (see .licenses)"
  "anarchism|GPL-2"
  "libpython3-stdlib|PSF-2"
  "python3-django|BSD-3-clause and compatible (see .licenses)"
)

say() { printf 'fetch_corpus: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# True when every file that LICENSES.tsv lists is there with its SHA-256.
complete() {
  [[ -f $dir/LICENSES.tsv ]] || return 1
  (cd "$dir" && awk -F'\t' 'NR > 1 { print $7 "  " $4 }' LICENSES.tsv |
    sha256sum --check --quiet --strict) >&2
}

summary() {
  awk -F'\t' 'NR > 1 { b += $6; d[$3] } END { printf "%.1f MB in %d domains", b / 1e6, length(d) }' \
    "$dir/LICENSES.tsv"
}

if complete; then
  say "$dir is complete: $(summary)"
  exit 0
fi

for tool in apt-get apt-cache dpkg-deb tar gzip python3 sha256sum; do
  command -v "$tool" > /dev/null || die "$tool is missing; this script needs a Debian system"
done

# The package that an empty one ("linux-doc", "libpython3-stdlib") stands for.
resolve() {
  case $1 in
    linux-doc | libpython3-stdlib)
      apt-cache depends --no-recommends --no-suggests "$1" 2> /dev/null |
        awk '/Depends:/ { print $2 }' | grep -E '^(linux-doc-|libpython3\.[0-9]+-stdlib)' | head -1 ;;
    *) echo "$1" ;;
  esac
}

mkdir -p "$dir"
work=$dir/.packages
mkdir -p "$work/debs" "$work/unpacked" "$dir/.licenses"
if ! apt-cache show dict-gcide > /dev/null 2>&1; then
  say "package lists are empty or old: apt-get update"
  apt-get update -qq || die "apt-get update failed; run it as root, then this script again"
fi

declare -A licence_of version_of
names=()
for entry in "${packages[@]}"; do
  name=$(resolve "${entry%%|*}")
  [[ -n $name ]] || die "no package found for ${entry%%|*}"
  names+=("$name")
  licence_of[$name]=${entry##*|}
done

find_deb() { find "$work/debs" -name "$1_*.deb" -size +0 | head -1; }

missing=()
for name in "${names[@]}"; do [[ -n $(find_deb "$name") ]] || missing+=("$name"); done
if ((${#missing[@]} > 0)); then
  # Each announced with its size, so that a download that broke off is noticed.
  apt-cache show --no-all-versions "${missing[@]}" |
    awk '/^Package:/ { p = $2 } /^Size:/ { print p, $2 }' > "$work/sizes"
  say "downloading ${#missing[@]} packages, $(awk '{ b += $2 } END { printf "%.0f MB", b / 1e6 }' "$work/sizes")"
  rm -rf "$work/incoming"
  mkdir -p "$work/incoming"
  (cd "$work/incoming" && apt-get download -qq "${missing[@]}" 2>&1 | grep -v unsandboxed >&2) || true
  while read -r name size; do
    deb=$(find "$work/incoming" -name "${name}_*.deb" | head -1)
    [[ -n $deb ]] || die "$name could not be downloaded; check the network, then run this script again"
    [[ $(stat -c %s "$deb") == "$size" ]] || die "$deb has not the $size bytes announced; run this again"
    mv "$deb" "$work/debs/"
  done < "$work/sizes"
fi

# Only what the cleaning reads: rendered pages and pictures are nine tenths of some packages.
unpack() {
  [[ ! -d $work/unpacked/$1 ]] || return 0
  local leave_out=(--exclude='*.png' --exclude='*.svg*' --exclude='*.js' --exclude='*.pdf*' --exclude='*.[mp]o')
  case $1 in
    linux-doc-* | git-doc | anarchism)
      leave_out+=(--exclude='*.html' --exclude='*/Documentation/*' --exclude='*/translations/*') ;;
  esac
  rm -rf "$work/unpacking"
  mkdir "$work/unpacking"
  dpkg-deb --fsys-tarfile "$(find_deb "$1")" | tar -x -C "$work/unpacking" --no-same-owner "${leave_out[@]}"
  mv "$work/unpacking" "$work/unpacked/$1"
}
number=0
for name in "${names[@]}"; do
  number=$((number + 1))
  say "[$number/${#names[@]}] unpacking $name"
  unpack "$name"
  version_of[$name]=$(dpkg-deb -f "$(find_deb "$name")" Version)
done

say "cleaning the text of ${#packages[@]} packages"
table=$work/table.tsv
python3 "$here/clean_corpus.py" "$work/unpacked" "$dir" > "$table"

manifest=$dir/LICENSES.tsv.partial
printf 'package\tversion\tdomain\tfile\tdocuments\tbytes\tsha256\tlicence\tsource\n' > "$manifest"
total=0
while IFS=$'\t' read -r package domain file documents bytes; do
  total=$((total + bytes))
  notice=$work/unpacked/$package/usr/share/doc/$package/copyright
  # Some packages link their documentation folder to another's, which may be installed here.
  [[ -f $notice ]] || notice=/usr/share/doc/$package/copyright
  if [[ -f $notice ]]; then cp "$notice" "$dir/.licenses/$package"; else
    echo "Debian package $package; licence: ${licence_of[$package]}" > "$dir/.licenses/$package"
  fi
  sum=$(sha256sum "$dir/$file" | cut -d' ' -f1)
  printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$package" "${version_of[$package]}" "$domain" "$file" \
    "$documents" "$bytes" "$sum" "${licence_of[$package]}" \
    "Debian package $package ${version_of[$package]}" >> "$manifest"
done < "$table"
((total >= least_bytes)) || die "only $total bytes of text came out, expected at least $least_bytes"
mv "$manifest" "$dir/LICENSES.tsv"
if ! $keep; then rm -rf "$work"; fi
say "$dir: $(summary); licences in LICENSES.tsv"
