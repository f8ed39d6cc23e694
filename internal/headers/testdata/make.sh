#!/bin/sh
# Makes kernel-devel.{gzip,xz,zstd}.rpm here, a few files as Fedora's kernel-devel has them.
# Needs rpmbuild (apt install rpm).
set -eu
cd "$(dirname "$0")"
top=$(mktemp -d)
trap 'rm -rf "$top"' EXIT
cat >"$top/kernel-devel.spec" <<'SPEC'
Name: kernel-devel
Version: 6.8.10
Release: 300.fc40
Summary: a few files as kernel-devel has them
License: GPL-2.0-only
BuildArch: x86_64
%define tree /usr/src/kernels/%{version}-%{release}.x86_64
%description
A few files as kernel-devel has them.
%install
mkdir -p %{buildroot}%{tree}/scripts/basic %{buildroot}%{tree}/include/generated %{buildroot}/usr/share/doc/kernel-devel
cd %{buildroot}%{tree}
echo '# the top Makefile' >Makefile
echo 'CONFIG_X86_64=y' >.config
echo '0x92997ed8	_printk	vmlinux	EXPORT_SYMBOL	' >Module.symvers
echo '#define UTS_RELEASE "6.8.10-300.fc40.x86_64"' >include/generated/utsrelease.h
echo '#!/bin/sh' >scripts/basic/fixdep
chmod 4755 scripts/basic/fixdep
echo 'one file of two names' >include/one.h
ln include/one.h include/two.h
: >include/empty.h
ln include/empty.h include/void.h
ln -s ../one.h include/generated/one.h
echo 'not headers' >%{buildroot}/usr/share/doc/kernel-devel/README
%files
/usr/src/kernels
/usr/share/doc/kernel-devel
%post
touch /tmp/a-script-was-run
SPEC
for mode in gzip=w9.gzdio xz=w2.xzdio zstd=w3.zstdio; do
	rpmbuild -bb --quiet --define "_topdir $top" --define "_binary_payload ${mode#*=}" \
		--define '_buildhost localhost' --define 'debug_package %{nil}' --define '__os_install_post %{nil}' \
		--target x86_64 "$top/kernel-devel.spec"
	cp "$top"/RPMS/x86_64/*.rpm "kernel-devel.${mode%=*}.rpm"
done
