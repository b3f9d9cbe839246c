# Which packages hold the libraries that what lies in OUT is linked to: into the file PACKAGES, a line each.
find "$OUT" -type f -name '*.so*' -exec env LD_LIBRARY_PATH="$OUT/usr/local/lib" ldd {} ';' |
  sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' | sort -u |
  while read -r library; do
    # By its name alone, for /lib is a link in one release and a folder in another; none holds what was just built.
    dpkg-query -S "*/$(basename "$(readlink -f "$library")")" 2> /dev/null || true
  done | cut -d: -f1 | sort -u > "$PACKAGES"
