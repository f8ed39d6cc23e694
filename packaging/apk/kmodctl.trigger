#!/bin/sh
# For an APKBUILD, in place of the commit hook: triggers="$pkgname.trigger=/lib/modules/*:/usr/src/linux-headers-*"
# apk-package(5): the folders that matched are the arguments.
exec /usr/bin/kmodctl hook changed "$@"
