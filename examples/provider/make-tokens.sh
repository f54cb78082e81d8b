#!/usr/bin/env bash
# Make a token for each tenant and one for an operator: make-tokens.sh DIR TENANT...
# DIR/NAME.token holds what its owner is given; tokens.yaml (for `mfu serve`) and htpasswd (for the Collector) hold hashes.
set -euo pipefail
umask 077

[ "$#" -ge 2 ] || { echo "usage: make-tokens.sh DIR TENANT..." >&2; exit 2; }
folder=$1
shift
for name in "$@"; do
  [[ "$name" =~ ^[A-Za-z0-9_-]{1,64}$ && "$name" != ops ]] ||
    { echo "$name: a tenant is named by letters, digits, _ and -, and not ops" >&2; exit 2; }
done
[ ! -e "$folder/tokens.yaml" ] || { echo "$folder/tokens.yaml: is there already; name another folder" >&2; exit 1; }
mkdir -p "$folder"

made() { # NAME: its token into NAME.token, the token's SHA-256 to standard output
  openssl rand -hex 32 | tr -d '\n' >"$folder/$1.token"
  openssl dgst -sha256 -r "$folder/$1.token" | cut -d ' ' -f 1
}

{
  echo "tenants:"
  for name in "$@"; do
    echo "  $name: [{token: \"sha256:$(made "$name")\"}]"
    # A token of 256 bits needs no slow hash: nobody guesses it.
    echo "$name:$(openssl passwd -apr1 -stdin <"$folder/$name.token")" >>"$folder/htpasswd"
  done
  echo "operators:"
  echo "  ops: [{token: \"sha256:$(made ops)\"}]"
} >"$folder/tokens.yaml"
# Hashes open nothing, and the daemon's user is another one than yours.
chmod 644 "$folder/tokens.yaml" "$folder/htpasswd"
