#!/usr/bin/env bash
# docs/config.md is what the binary prints. To renew it: degu help --markdown > docs/config.md
#   reference_test.sh DEGU PAGE
set -euo pipefail
if ! diff -u "$2" <("$1" help --markdown); then
  echo "docs/config.md is out of date: degu help --markdown > docs/config.md"
  exit 1
fi
echo "docs/config.md is what the binary prints"
