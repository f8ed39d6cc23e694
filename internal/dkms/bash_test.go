package dkms

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// snippets are what is asked of bash too.
var snippets = []string{
	`X=a`, `X='a  b'`, `X="a	b"`, `X=" a "`, "X='a\nb'", `X=`, `unset X`, `X=a; unset X`, `X=(a b c)`, `X=([3]=c [1]=a)`, `X[2]=c; X[0]=a`, `X[1]=b`,
	`X+=(a)`, `X=a; X+=b`, `X=(a b c); unset X[1]`, `X=(a "b c" d); Y=${#X[@]}; Z=${X[1]}`, `X=(); Y=${#X[@]}`, `X=([5]=x); X+=(y)`,
	`i=0; X[$i]=a; i=$((i+1)); X[$i]=b; X[i+1]=c`, `X=${Y:-def}`, `Y=1; X=${Y:+set}`, `X=${Y=z}`, `Y[0]=q; X=${Y:-def}`, `Y[1]=q; X=${Y:-def}`,
	`Y[0]=q; X=${Y+set}`, `Y[0]=; X=${Y-def}`, `Y[1]=q; X=${Y[1]:-def} Z=${Y[0]:-none}`, `Y=abcabc; X=${Y#a}; Z=${Y##*b}`,
	`Y=abcabc; X=${Y%c}; Z=${Y%%b*}`, `Y=abcabc; X=${Y/b/X}; Z=${Y//b/X}`, `Y=a.b.c; X=${Y//./_}`, `Y=abc; X=${Y^^}; Z=${Y^}`, `Y=ABC; X=${Y,,}`,
	`Y=abcdef; X=${Y:1:2}; Z=${Y: -2}`, `Y=abc; X=${#Y}`, `Y=Z; Z=v; X=${!Y}`, `Y=6.1.0; X=${Y%%.*}; Z=${Y#*.}`, `X='$Y'; Y=1`, `X='\$Y'`, `X='a"b"c'`,
	`X='a\"b\"c'`, `X='a'"'b'"`, "X='`echo hi`'", `X='$(echo hi)'`, `X='$((1+2))'`, `X='a\\b'`, `X='a\nb'`, `X=$'a\tb'`, `X=$'a\nb'`,
	`X='a;b & c | d > e'`, `X='*'`, `X='a*b?c[d]'`, `X='~'`, `X=~root`, `X='{a,b}'`, `X='!a'`, `X='# no comment'`, `X=a#b # comment`,
	`X=$(echo a b; echo c)`, `X="$(printf '%s\n' a b)"`, "X=`echo \\`echo a\\``", `X=$(exit 3); Y=$?`, `false; X=$?`, `X=$(echo a | tr a b)`,
	`X=$(echo 6.1.0-56 | cut -d- -f2)`, `X=$(echo aXb | sed 's/X/ /')`, `X=$(echo 6.1.0 | sed -ne 's/\([0-9]\+\)\.\([0-9]\+\).*/\2/p')`,
	`X=$(printf '5.18\n6.1\n' | sort -V | tail -1)`, `printf '6.1\n5.18\n' | sort -V -C; X=$?`, `X=$(basename /a/b.c .c)`, `X=$(dirname /a/b/c)`,
	`X=$(expr 1 + 2)`, `X=$(seq 3)`, `X=$(echo abc | wc -c)`, `if [ a = a ]; then X=1; else X=2; fi`, `[ "" -lt 5 ]; X=$?`, `[ x -lt 5 ]; X=$?`,
	`[ 4 -lt 5 ]; X=$?`, `[ " 4 " -lt 5 ]; X=$?`, `[ 08 -eq 8 ]; X=$?`, `[ 6.1 -lt 7 ]; X=$?`, `[ -n "" ]; X=$?`, `[ -z "" ]; X=$?`, `[ ]; X=$?`,
	`[ a ]; X=$?`, `[ ! a ]; X=$?`, `[ -n ]; X=$?`, `[ a = ]; X=$?`, `[ = a ]; X=$?`, `[ a b ]; X=$?`, `[ 1 -eq 1 -a 2 -eq 2 ]; X=$?`,
	`[ 1 -eq 2 -o 2 -eq 2 ]; X=$?`, `[ ! 1 -eq 2 -a ! "" ]; X=$?`, `[ \( 1 -eq 2 \) -o a ]; X=$?`, `[ "" -eq 4 -a 1 -lt 12 ] || [ 3 -lt 4 ]; X=$?`,
	`test -e /nonexistent; X=$?`, `test -d /; X=$?`, `[ a \< b ]; X=$?`, `[ a == a ]; X=$?`, `[ a = a; X=$?`, `[ 1 -eq 1 -a ]; X=$?`, `[ -f ]; X=$?`,
	`[ ! ]; X=$?`, `[ ! = a ]; X=$?`, `[ "(" = ")" ]; X=$?`, `[[ a = a* ]]; X=$?`, `[[ abc == a*c ]]; X=$?`, `[[ abc != "a*c" ]]; X=$?`,
	`[[ abc =~ ^a.c$ ]]; X=$?`, `[[ 6.1.0 =~ ^([0-9]+)\.([0-9]+) ]]; X=${BASH_REMATCH[1]} Y=${BASH_REMATCH[2]}`, `[[ a < b ]]; X=$?`, `[[ -n $Y ]]; X=$?`,
	`[[ $Y ]]; X=$?`, `[[ "" -lt 5 ]]; X=$?`, `Y=5; [[ $Y -ge 5 && ${Y}0 -eq 50 ]]; X=$?`, `Y=$(echo 6.1.0 | cut -d. -f2); [[ $Y -ge 1 ]]; X=$?`,
	`f() { if [ a = a ]; then return; fi; X=2; }; f; Y=1`, `[[ ! -e /nonexistent && -d / ]]; X=$?`, `[[ a = b || a = a ]]; X=$?`,
	`re='^6\.'; [[ 6.1 =~ $re ]]; X=$?`, `case 6.1.0 in 5.*) X=5 ;; 6.*|7.*) X=6 ;; *) X=0 ;; esac`, `case abc in a?c) X=1 ;; esac`,
	`case abc in [a-c]*) X=1 ;; esac`, `case 12 in +([0-9])) X=1 ;; *) X=2 ;; esac`, `case ab in !(ab)) X=1 ;; *) X=2 ;; esac`,
	`case a in a) X=1 ;;& *) Y=2 ;; esac`, `case a in a) X=1 ;& b) Y=2 ;; esac`, `for i in a b c; do X=$X$i; done`,
	`for ((i=0;i<3;i++)); do X[i]=$i; done`, `i=0; while [ $i -lt 3 ]; do X[$i]=m$i; i=$((i+1)); done`, `i=0; until (( i >= 2 )); do ((i++)); done; X=$i`,
	`for i in a b c; do [ $i = b ] && continue; X=$X$i; done`, `for i in {1..3}; do X=$X$i; done`, `X=$(for i in 3 1 2; do echo $i; done | sort)`,
	`f() { X=$1; return 3; }; f a b; Y=$?`, `f() { local X=in; Y=$X; }; X=out; f`, `f() { echo $#; }; X=$(f a "b c")`, `declare X=a`,
	`declare -a X=(a b)`, `export X=a`, `readonly X=a`, `local X=a; Y=$?`, `typeset X=a`, `X=$((1+2*3)) Y=$((7/2)) Z=$((7%3))`, `X=$((1<<4))`,
	`X=$((010))`, `X=$((0x10))`, `Y=; X=$((Y+1))`, `X=$((2**3))`, `((X=5))`, `let X=1+2`, `X=$((3>2?1:0))`, `X=$((1,2))`, `Y=1; X=$((Y++)) Z=$Y`,
	`{ X=a; Y=b; }`, `( X=a ); Y=$X`, `true && X=1 || X=2`, `false && X=1 || X=2`, `! true; X=$?`, `X=a Y=b true; Z=$X`, `X=a echo hi >&2 2>/dev/null`,
	"X=$(cat <<E\na $((1+1))\nE\n)", "X=$(cat <<'E'\na $Y\nE\n)", `X=$(cat <<< "a b")`, "if true\nthen\n  X=1\nfi", "X=a \\\n  Y=b", "X=\"a \\\n b\"",
	"X=a\r\nY=b\r\n", `X=$(echo a >/dev/null)`, `X=$(echo a 2>/dev/null)`, `X=$(echo a >&2)`, `X=$PWD`, `cd /usr; X=$PWD`,
	`pushd /usr >/dev/null; X=$PWD; popd >/dev/null; Y=$PWD`, `command -v nosuchprogram; X=$?`, `command -v echo >/dev/null; X=$?`,
	`Y='a b'; X=${Y@Q}`, `Y=abc; X=${Y//[ab]/x}`, `Y=aaa; X=${Y/a}`, `Y=a/b/c; X=${Y//\//-}`, `Y=abc; X=${Y/b/"&"}`, `X=$(echo /nonexistent*)`,
	`X=(/nonexistent*)`, `X="${Y[@]}"; Z=${#Y[*]}`, `Y=(a b c); X="${Y[*]}"`, `Y=(a b c); X=${Y[-1]}`, `Y=(a b c d); X="${Y[@]:1:2}"`,
	`Y=([1]=a [4]=b); X="${!Y[@]}"`, `Y=(a1 b2); X="${Y[@]/[0-9]/}"`, `Y=(a1 b2); X=("${Y[@]%?}")`, `set -- a b; X=$2`, `X=1; false`,
	`X=a; X[1]=b; Y=${X[0]}`, `X=(a b); X=c`, `X[0]="a b" X[1]='c  d'`, `X="a'b"`, `X='a$'`, `X='a$b'`, `X='${Y}'; Y=5`, `X='!'`,
	`X=$'\x41'`, `X="\$(nproc)"; X=`, `echo "a" "b" > /dev/null; X=$?`, `X=$(uname -r) ; X=`, `X=${Y//x/}`, `Y='  a  b '; X=$Y; Z=$(echo $Y)`,
	`Y='a b'; X=($Y)`, `Y='a b'; X=("$Y")`, `Y=a; Z=("$Y"/x "${Y}"y); X=${Z[1]}`, `X=$(echo -n a; echo -e 'b\tc')`, `X=$(echo '\n')`,
	`X=$(printf '%d-%s' 3 a)`, `X=$(printf '%b' 'a\nb')`,
}

// beyond are snippets that the interpreter would get wrong, or that have no place in a dkms.conf: they are refused.
var beyond = []string{
	`[ /usr -nt /etc ] && X=1`, `[ -w /etc ] && X=1`,
	"X='a`b'",
	`X[0]=a; X[0]+=b`, `Y=6.1.0-56-amd64; IFS=.- ; set -- $Y; X=$2`, `[[ 1+1 -eq 2 ]]; X=$?`, `Y=08; [[ $Y -lt 9 ]]; X=$?`, `[[ 6.1 -lt 7 ]]; X=$?`,
	`[[ abc -lt 7 ]]; X=$?`, `[[ "5 6" -lt 7 ]]; X=$?`, `[[ 56-amd64 -gt 5 ]]; X=$?`, `[[ 99999999999999999999 -gt 5 ]]; X=$?`,
	`Y=3; [[ Y -eq 3 ]]; X=$?`, `[[ 010 -eq 8 ]]; X=$?`, `[[ a.c =~ "a.c" ]]; X=$?`, `[[ abc =~ "a.c" ]]; X=$?`, `echo a | X=b; Y=$?`, "\xef\xbb\xbfX=a",
	`X=$(nosuch 2>/dev/null)`, `X=$0`, `X=$$`, `X=$RANDOM`, `X=$BASH_VERSION`, `X=${BASH_VERSINFO[0]}`, `X=$HOME`, `X=$SECONDS`, `X=$LINENO`,
	`X=$HOSTNAME`, `X=$OSTYPE`, `X=$MACHTYPE`, `X=$SHELL`, `Y=%; X=${Y/%/b}`, `Y=abc; X=${Y/%c/d}`, `Y=abc; X=${Y/#a/d}`, `Y=c; Z=abc; X=${Z/%$Y/d}`,
	`Y=abc; X=${Y/b/&&}`, `declare -i X=1+1`, `declare -A X; X[a]=b`, `declare -u X=abc`, `declare -l X=ABC`, `declare -n X=Y; X=3`,
	`shopt -s nullglob; X=$(echo /nonexistent*)`, `printf -v X %03d 7`, `read X <<< abc`, `Y=(a b c); IFS=,; X="${Y[*]}"`, `IFS=,; X=a,b`, `X=${Y:?}`,
	`return; X=1`, `X=1; return; X=2`, `X='a\'`, `X=$(type -t echo)`, `X=${FUNCNAME[0]}`, `true | false; X=$?; Y=${PIPESTATUS[0]}`,
}

// TestBash: a snippet has the variables X, Y and Z as bash has them when DKMS reads it, or is refused.
func TestBash(t *testing.T) {
	read := func(text string) (*reply, error) {
		m := &message{Files: []file{{ConfFile, ConfFile, text}}, Names: []string{"X", "Y", "Z"}, Reads: []string{"/usr"}}
		return newShell(m).evaluate(t.Context())
	}
	for _, text := range snippets {
		r, err := read(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		got := map[string]string{}
		for name, array := range r.Values {
			for i, value := range array {
				got[fmt.Sprintf("%s[%d]", name, i)] = value
			}
		}
		if diff := cmp.Diff(bashReads(t, text), got); diff != "" {
			t.Errorf("%q (-bash +kmodctl):\n%s", text, diff)
		}
	}
	for _, text := range beyond {
		r, err := read(text)
		if bad := (*Error)(nil); !errors.As(err, &bad) || bad.File != ConfFile {
			t.Errorf("%q is not refused: %v, %v", text, r, err)
		}
	}
}

// bashReads reads a text twice, as DKMS does.
func bashReads(t *testing.T, text string) map[string]string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-c", `
		shopt -s extglob
		cd /
		echo "$1" >"$2/first"
		second=$(
			. "$2/first" >/dev/null
			for name in X Y Z; do
				for i in $(eval "echo \${!$name[@]}"); do
					eval "echo $name[$i]=\\\"\${$name[$i]%$'\r'}\\\""
				done
			done
		)
		echo "$second" >"$2/second"
		unset X Y Z
		. "$2/second"
		declare -n array
		for array in X Y Z; do
			for i in "${!array[@]}"; do
				printf '%s\0' "${!array}[$i]" "${array[$i]}"
			done
		done`, "bash", text, t.TempDir())
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil && len(out) == 0 {
		return map[string]string{"bash": said.String()}
	}
	words := strings.Split(string(out), "\x00")
	got := map[string]string{}
	for pair := range slices.Chunk(words[:len(words)-1], 2) {
		got[pair[0]] = pair[1]
	}
	return got
}
