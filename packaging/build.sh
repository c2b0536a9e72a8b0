#!/usr/bin/env bash
# Builds the packages: .deb (dpkg-deb), .rpm (rpmbuild) and a tarball, with their SHA-256.
# The same sources, version and SOURCE_DATE_EPOCH make the same bytes.
set -Eeuo pipefail
# Not every command that fails says so.
trap 'printf "error: packaging/build.sh, line %s: %s\n" "$LINENO" "$BASH_COMMAND" >&2' ERR
cd "$(dirname "$0")/.."
umask 022
export LC_ALL=C TZ=UTC

usage() {
  cat << 'END'
Usage: packaging/build.sh [--version V] [--binary FILE] [--out DIR] [--fast] [deb|rpm|tar|all]…

Builds packages of baton for this machine's architecture. Default: all.

  --version V      the packages' version. Default: that of Cargo.toml
  --binary FILE    pack this program instead of building one with the profile dist
  --out DIR        where they go. Default: target/packages
  --fast           compress little: for tests

Examples:
  packaging/build.sh
  packaging/build.sh --out dist deb
  packaging/build.sh --fast --binary target/debug/baton --version 0.0.9 deb

SOURCE_DATE_EPOCH says the time of all files. Default: that of the last commit.
DEBFULLNAME and DEBEMAIL say who maintains the packages.
END
}

fail() {
  printf 'error: %s\n' "$1" >&2
  [[ -z ${2-} ]] || printf 'hint: %s\n' "$2" >&2
  exit 1
}

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
binary='' out=target/packages fast='' kinds=()
while (($#)); do
  case $1 in
    --version) version=${2:?--version V} && shift ;;
    --binary) binary=${2:?--binary FILE} && shift ;;
    --out) out=${2:?--out DIR} && shift ;;
    --fast) fast=1 ;;
    deb | rpm | tar) kinds+=("$1") ;;
    all) kinds+=(deb rpm tar) ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && exit 2 ;;
  esac
  shift
done
((${#kinds[@]})) || kinds=(deb rpm tar)
[[ $version =~ ^[0-9]+(\.[0-9]+)*([-+][0-9A-Za-z.+-]+)?$ ]] || fail "version $version" "for example 1.4.2 or 1.5.0-rc.1"
# Before the release, not after it: in both systems a tilde sorts so.
package_version=${version/-/\~}
package_version=${package_version//-/.}

: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct 2> /dev/null || stat -c %Y CHANGELOG.md)}"
export SOURCE_DATE_EPOCH
maintainer="${DEBFULLNAME:-baton maintainers} <${DEBEMAIL:-maintainers@baton.invalid}>"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# No path of this machine in the program: panics would tell them, and other machines would build other bytes.
build_program() {
  local cargo=${CARGO_HOME:-$HOME/.cargo}
  export RUSTFLAGS="${RUSTFLAGS-} --remap-path-prefix=$PWD=/baton --remap-path-prefix=$cargo=/cargo"
  export CFLAGS="${CFLAGS-} -ffile-prefix-map=$PWD=/baton -ffile-prefix-map=$cargo=/cargo"
  cargo build --profile dist --locked --bin baton
  binary=${CARGO_TARGET_DIR:-target}/dist/baton
}

# Names stay in it, for backtraces.
copy_program() {
  mkdir -p "$work/bin"
  strip --strip-debug -o "$work/bin/baton" "$binary"
  chmod 755 "$work/bin/baton"
  baton=$work/bin/baton
  "$baton" --version > /dev/null || fail "$binary does not run here" "packages are built on the architecture that they are for"
}

# What the program needs of the system, as Debian and RPM call it.
look_at_program() {
  case $(readelf --file-header "$baton" | sed -n 's/^ *Machine: *//p') in
    *X86-64*) machine=x86_64 deb_architecture=amd64 ;;
    AArch64) machine=aarch64 deb_architecture=arm64 ;;
    *) fail "no name known for the architecture of $binary" ;;
  esac
  glibc=$(readelf --version-info --wide "$baton" | grep -o 'GLIBC_[0-9.]*' | sort --unique --version-sort | tail -n 1)
  glibc=${glibc#GLIBC_}
  [[ $glibc ]] || fail "$binary says no version of glibc that it needs"
  local library
  for library in $(readelf --dynamic --wide "$baton" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
    case $library in
      libc.so.* | libm.so.* | ld-linux-*) ;;
      # Each library costs at each start, and is one more thing that a machine must have.
      *) fail "$binary needs $library" "only glibc's are expected; build.rs links gcc's unwinder in where libgcc_eh.a is" ;;
    esac
  done
}

put() { # MODE FILE TARGET
  install -D --mode "$1" "$2" "$3"
}

# What all packages have, below a prefix.
stage_shared() { # ROOT
  local root=$1 file
  put 755 "$baton" "$root/bin/baton"
  put 644 src/config/agent.toml "$root/share/baton/agent.toml"
  for file in share/baton.sh share/Baton.psm1; do put 644 "$file" "$root/share/baton/$(basename "$file")"; done
  for file in share/schema/*; do put 644 "$file" "$root/share/baton/schema/$(basename "$file")"; done
  mkdir -p "$root"/share/{man/man1,bash-completion/completions,zsh/site-functions,fish/vendor_completions.d,doc/baton}
  "$baton" man --dir "$root/share/man/man1"
  gzip --best --no-name "$root"/share/man/man1/*.1
  "$baton" completion bash > "$root/share/bash-completion/completions/baton"
  "$baton" completion zsh > "$root/share/zsh/site-functions/_baton"
  "$baton" completion fish > "$root/share/fish/vendor_completions.d/baton.fish"
  cp --recursive README.md docs "$root/share/doc/baton/"
  # Its parts in other hands, each with its licence: they are in the program.
  cargo tree --locked --edges normal --prefix none --format '{p} {l}' |
    sed '/^baton-agent /d; s/ (proc-macro)//; s/ (\*)$//' | sort --unique > "$root/share/doc/baton/third-party.txt"
}

stage_system() { # ROOT
  local root=$1 file
  stage_shared "$root/usr"
  for file in packaging/systemd/*.service; do put 644 "$file" "$root/usr/lib/systemd/system/$(basename "$file")"; done
  put 644 packaging/tmpfiles.d/baton.conf "$root/usr/lib/tmpfiles.d/baton.conf"
  put 644 packaging/etc/agent.toml "$root/etc/baton/agent.toml"
}

# The time and the modes that all files have, whoever packs them.
settle() { # ROOT
  find "$1" -type d -exec chmod 755 {} +
  find "$1" -exec touch --no-dereference --date "@$SOURCE_DATE_EPOCH" {} +
}

# Fills in @WORDS@ of a template.
fill() { # FILE
  sed -e "s|@VERSION@|$package_version|g; s|@ARCHITECTURE@|$deb_architecture|g; s|@GLIBC@|$glibc|g" \
    -e "s|@MAINTAINER@|$maintainer|g; s|@MACHINE@|$machine|g; s|@SIZE@|${size-}|g; s|@STAGED@|${staged-}|g" \
    -e "s|@DATE@|$(date --rfc-email --date "@$SOURCE_DATE_EPOCH")|g" "$1"
}

build_deb() {
  type -P dpkg-deb > /dev/null || fail "no dpkg-deb" "apt-get install dpkg"
  local root=$work/deb doc size compress=(-Zxz -z6)
  doc=$root/usr/share/doc/baton
  stage_system "$root"
  mv "$root/usr/share/zsh/site-functions" "$root/usr/share/zsh/vendor-completions"
  put 644 packaging/deb/copyright "$doc/copyright"
  gzip --best --no-name --stdout CHANGELOG.md > "$doc/changelog.gz"
  fill packaging/deb/changelog | gzip --best --no-name > "$doc/changelog.Debian.gz"
  put 644 packaging/deb/lintian-overrides "$root/usr/share/lintian/overrides/baton"
  mkdir "$root/DEBIAN"
  size=$(du --summarize --apparent-size --block-size 1024 "$root" | cut -f 1)
  fill packaging/deb/control > "$root/DEBIAN/control"
  echo /etc/baton/agent.toml > "$root/DEBIAN/conffiles"
  local script
  for script in preinst postinst prerm postrm; do put 755 "packaging/deb/$script" "$root/DEBIAN/$script"; done
  (cd "$root" && find usr etc -type f -print0 | sort --zero-terminated | xargs --null md5sum > DEBIAN/md5sums)
  settle "$root"
  [[ -z $fast ]] || compress=(-Zgzip -z1)
  dpkg-deb --root-owner-group "${compress[@]}" --build "$root" "$out/baton_$package_version-1_$deb_architecture.deb" > /dev/null
}

build_rpm() {
  type -P rpmbuild > /dev/null || fail "no rpmbuild" "apt-get install rpm, or dnf install rpm-build"
  local staged=$work/rpm/staged payload=w19.zstdio
  stage_system "$staged"
  put 644 LICENSE-MIT "$staged/usr/share/licenses/baton/LICENSE-MIT"
  put 644 LICENSE-APACHE "$staged/usr/share/licenses/baton/LICENSE-APACHE"
  put 644 CHANGELOG.md "$staged/usr/share/doc/baton/CHANGELOG.md"
  settle "$staged"
  fill packaging/rpm/baton.spec > "$work/rpm/baton.spec"
  [[ -z $fast ]] || payload=w1.gzdio
  # Nothing of the machine that builds it, and no database of packages: Debian's rpm has none.
  rpmbuild -bb --quiet --nodeps --target "$machine-linux" \
    --define "_topdir $work/rpm/top" --define "_rpmdir $work/rpm/out" --define '_build_id_links none' \
    --define '_buildhost reproducible' --define "_binary_payload $payload" --define '_binary_filedigest_algorithm 8' \
    --define 'use_source_date_epoch_as_buildtime 1' --define 'clamp_mtime_to_source_date_epoch 1' \
    "$work/rpm/baton.spec"
  cp "$work/rpm/out/$machine"/*.rpm "$out/"
}

build_tar() {
  local name=baton-$version-$machine-linux root=$work/tar/baton-$version-$machine-linux
  stage_shared "$root"
  put 644 LICENSE-MIT "$root/share/doc/baton/LICENSE-MIT"
  put 644 LICENSE-APACHE "$root/share/doc/baton/LICENSE-APACHE"
  put 644 CHANGELOG.md "$root/share/doc/baton/CHANGELOG.md"
  fill packaging/INSTALL > "$root/share/doc/baton/INSTALL"
  settle "$root"
  tar --create --directory "$work/tar" --sort name --format gnu --owner 0 --group 0 --numeric-owner \
    --mtime "@$SOURCE_DATE_EPOCH" "$name" | gzip --no-name ${fast:+--fast} > "$out/$name.tar.gz"
}

main() {
  local kind sums
  [[ $binary ]] || build_program
  copy_program
  look_at_program
  mkdir -p "$out"
  for kind in "${kinds[@]}"; do "build_$kind"; done
  sums=$(cd "$out" && find . -maxdepth 1 -type f ! -name SHA256SUMS -printf '%P\0' |
    sort --zero-terminated | xargs --null sha256sum)
  printf '%s\n' "$sums" | tee "$out/SHA256SUMS"
  printf 'in %s; they need glibc %s or newer\n' "$out" "$glibc"
}

# In one line with its end: bash reads a script as it goes, and a build takes minutes in which the file may change.
main && exit
