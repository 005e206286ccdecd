#!/bin/sh
# assemble.sh HEADER DIRECTORY: a program made of the header and of every file below the directory, in order.
set -eu
echo '#!/bin/sh'
sed 's/^/# /' "$1"
find "$2" -type f | sort | while read -r file; do
    echo "# $file $(sha256sum < "$file")"
done
