#!/usr/bin/env bash
# Whether the manifests are right, as far as can be said without a cluster: deploy/k8s/check.sh [--json DIR] [STEP...]
#
#   shell     the scripts, by shellcheck
#   objects   everything is rendered by `kubectl kustomize`, each overlay and the base with every choice of components,
#             and held against the schemas of Kubernetes and against itself (check/objects.py)
#   rules     the alerts, by promtool: their syntax, and that each fires when it should (rules_test.yaml)
#
# Without STEP, all of them. With --json, the rendered objects are written to DIR. The tools are those that
# scripts/test-env has installed into .venv-k8s, or in $CASBAH_K8S_TOOLS.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
root=$(cd -- "$here/../.." && pwd)
tools=${CASBAH_K8S_TOOLS:-$root/.venv-k8s/bin}

fail() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

json_dir=
if [ "${1-}" = --json ]; then
    json_dir=$(cd -- "${2:?--json wants a directory}" && pwd)
    shift 2
fi
[ $# -gt 0 ] || set -- shell objects rules
for tool in kubectl kubernetes-validate promtool python shellcheck; do
    [ -x "$tools/$tool" ] || fail "there is no $tools/$tool" "scripts/test-env lint installs it"
done

work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT

check_shell() {
    local scripts=("$here/check.sh")
    for script in scripts/test-env .ci/run; do
        [ ! -f "$root/$script" ] || scripts+=("$root/$script")
    done
    "$tools/shellcheck" "${scripts[@]}"
    echo "shell: ${#scripts[@]} scripts"
}

# A kustomization of the base with some components: combine NAME COMPONENT...
combine() {
    local name=$1 component
    shift
    mkdir -p "$work/k8s/combined/$name"
    {
        printf 'apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../../base]\n'
        [ $# -eq 0 ] || printf 'components:\n'
        for component; do printf -- '- ../../components/%s\n' "$component"; done
    } >"$work/k8s/combined/$name/kustomization.yaml"
}

check_objects() {
    local components=() chosen name path bits index files=() arguments=()
    # A copy, since kustomizations are added to it, and nothing here changes what it checks.
    mkdir "$work/k8s"
    cp -r "$here/base" "$here/components" "$here/overlays" "$work/k8s/"
    for path in "$here"/components/*/; do components+=("$(basename "$path")"); done
    for ((bits = 0; bits < 1 << ${#components[@]}; bits++)); do
        chosen=() name=base
        for index in "${!components[@]}"; do
            if ((bits >> index & 1)); then chosen+=("${components[index]}") name+="-${components[index]}"; fi
        done
        combine "$name" "${chosen[@]}"
    done
    combine base-scaled
    printf 'replicas: [{name: casbah, count: 7}]\n' >>"$work/k8s/combined/base-scaled/kustomization.yaml"

    for path in "$work"/k8s/combined/*/ "$work"/k8s/overlays/*/; do
        name=$(basename "$path")
        "$tools/kubectl" kustomize "$path" >"$work/$name.yaml" 2>"$work/said" ||
            fail "$name cannot be rendered: $(cat "$work/said")"
        # What is only deprecated is said on standard error.
        [ ! -s "$work/said" ] || fail "$name: $(cat "$work/said")"
        files+=("$name=$work/$name.yaml")
    done
    [ -z "$json_dir" ] || arguments=(--json "$json_dir")
    printf 'objects: '
    "$tools/python" "$here/check/objects.py" "${arguments[@]}" "${files[@]}"
}

check_rules() {
    local monitoring=$here/components/monitoring
    mkdir "$work/rules"
    # What Prometheus itself reads is the specification of the object.
    "$tools/python" - "$monitoring/rules.yaml" >"$work/rules/rules.yml" <<'PYTHON'
import sys, yaml
with open(sys.argv[1]) as file:
    yaml.safe_dump(yaml.safe_load(file)["spec"], sys.stdout)
PYTHON
    cp "$monitoring/rules_test.yaml" "$work/rules/"
    "$tools/promtool" check rules --lint-fatal "$work/rules/rules.yml" >"$work/said" 2>&1 || fail "rules: $(cat "$work/said")"
    "$tools/promtool" test rules "$work/rules/rules_test.yaml" >"$work/said" 2>&1 || fail "rules: $(cat "$work/said")"
    # Every alert has a test in which it fires.
    "$tools/python" - "$work/rules/rules.yml" "$work/rules/rules_test.yaml" <<'PYTHON'
import sys, yaml
rules, tests = (yaml.safe_load(open(path)) for path in sys.argv[1:])
alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
fires = {case["alertname"] for test in tests["tests"] for case in test["alert_rule_test"] if case.get("exp_alerts")}
if alerts - fires:
    sys.exit(f"error: no test lets these fire: {', '.join(sorted(alerts - fires))}")
print(f"rules: {len(alerts)} alerts, each of which fires in a test")
PYTHON
}

for step; do
    case $step in
        shell) check_shell ;;
        objects) check_objects ;;
        rules) check_rules ;;
        *) fail "there is no step $step" "shell, objects or rules" ;;
    esac
done
