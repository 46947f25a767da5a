# Sourced by the scripts that fetch etcd and Prometheus: unpacks Debian's packages without installing them.
#
# The caller sets `work`, its own folder, `arch`, `suite` and `version`, and defines `note` and `failed`. Needs no root.

# Unpacks the packages "$@", such as etcd-server, into $work/root. On failure, it reports the reasons to `failed`.
debian_packages() {
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg mirror mirrors packages
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null || [[ ! -r $keyring ]]; then
        failed "Debian's packages" "this machine lacks apt-get, dpkg-deb or $keyring"
        return 1
    fi
    private_apt
    mirrors=$(debian_mirrors)
    if [[ -z $mirrors ]]; then
        failed "Debian's packages" "apt has no Debian mirror configured"
        return 1
    fi
    packages=("${@/%/=$version*}")
    for mirror in $mirrors; do
        note "Fetching $* $version from Debian's packages for $suite at $mirror."
        echo "deb [arch=$arch signed-by=$keyring target=Packages] $mirror $suite main" >"$work/apt/sources.list"
        rm -rf "${work:?}/root" "$work"/apt/*.deb
        if (
            cd "$work/apt"
            apt-get -c "$work/apt/conf" --error-on=any update &&
                apt-get -c "$work/apt/conf" download "${packages[@]}" &&
                for package in ./*.deb; do dpkg-deb -x "$package" "$work/root" || exit; done
        ) >"$work/log" 2>&1; then
            return 0
        fi
        reason=$(grep '^E: ' "$work/log" | head -n 2 | tr '\n' ' ' || true)
        failed "Debian's packages for $suite from $mirror" "${reason:-$(tail -n 1 "$work/log")}" || true
    done
    return 1
}

# Runs apt with its own lists, cache and state, without the machine's hooks, but with the machine's proxy settings.
private_apt() {
    mkdir -p "$work"/apt/{lists/partial,archives/partial}
    : >"$work/apt/status"
    cat >"$work/apt/conf" <<CONF
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "1";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
Dir::State "$work/apt";
Dir::State::lists "$work/apt/lists";
Dir::State::status "$work/apt/status";
Dir::Cache "$work/apt";
Dir::Cache::archives "$work/apt/archives";
CONF
}

# The mirrors that the machine's own apt takes its Debian release from. Other people's archives can be among them: their
# packages are not signed by Debian, so they are refused when tried.
debian_mirrors() {
    local codename
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-sid}")
    apt-get -c "$work/apt/conf" update --print-uris 2>/dev/null |
        sed -nE "s#^'(.+)/dists/($codename|$suite|stable|oldstable|testing|unstable|sid)/InRelease' .*#\1#p" | sort -u
    # From here on, our own list of sources replaces the machine's.
    cat >>"$work/apt/conf" <<CONF
Dir::Etc::sourcelist "$work/apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
CONF
}
