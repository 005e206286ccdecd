//! What is shipped for Kubernetes: manifests, as kubectl renders them and as casbah reads them, and the check of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use casbah_tests::process;
use serde_json::Value;
use tempfile::TempDir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn text(path: &str) -> Result<String> {
    let path = root().join(path);
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Runs the check of the manifests in `k8s`. What it says, as its error where it finds something.
fn check(k8s: &Path, arguments: &[&str]) -> Result<String> {
    let tools = root().join(".venv-k8s/bin");
    ensure!(tools.is_dir(), "there is no {}: make test-env", tools.display());
    let mut command = Command::new(k8s.join("check.sh"));
    let output = command.args(arguments).env("CASBAH_K8S_TOOLS", &tools).output().context("check.sh")?;
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if output.status.success() { Ok(said) } else { Err(anyhow!(said)) }
}

/// The objects of a rendering, such as `prod` or `base-monitoring`.
fn rendered(name: &str) -> Result<Vec<Value>> {
    static DIR: OnceLock<Result<TempDir, String>> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let path = dir.path().display().to_string();
        check(&root().join("deploy/k8s"), &["--json", &path, "objects"]).map_err(|error| error.to_string())?;
        Ok(dir)
    });
    let dir = dir.as_ref().map_err(|error| anyhow!("{error}"))?;
    let objects = fs::read(dir.path().join(format!("{name}.json"))).with_context(|| name.to_owned())?;
    Ok(serde_json::from_slice(&objects)?)
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Result<&'a Value> {
    objects
        .iter()
        .find(|object| object.get("kind").is_some_and(|of| of == kind))
        .with_context(|| format!("there is no {kind}"))
}

// === the check, and that it finds something

#[test]
fn the_manifests_stand_up_to_the_check() -> Result<()> {
    let said = check(&root().join("deploy/k8s"), &["shell", "rules"])?;
    assert!(said.contains("shell: ") && said.contains("rules: "), "{said}");
    for name in ["base", "base-cert-manager-load-balancer-monitoring", "dev", "prod"] {
        assert!(rendered(name)?.len() >= 7, "{name} has hardly an object");
    }
    Ok(())
}

/// A mistake in a file, and what the check is to say of it.
struct Mistake {
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
    said: &'static str,
}

const fn mistake(file: &'static str, right: &'static str, wrong: &'static str, said: &'static str) -> Mistake {
    Mistake { file, right, wrong, said }
}

fn copy_dir(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_dir(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Makes all of these mistakes in a copy of the manifests: one run of the check has to find every one.
///
/// One in each object at most, where a schema is to find it: it tells the worst.
fn finds(step: &str, mistakes: &[Mistake]) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let k8s = dir.path().join("deploy/k8s");
    copy_dir(&root().join("deploy/k8s"), &k8s)?;
    for Mistake { file, right, wrong, .. } in mistakes {
        let path = k8s.join(file);
        let before = fs::read_to_string(&path).with_context(|| (*file).to_owned())?;
        let after = before.replace(right, wrong);
        ensure!(after != before, "{file} has no {right:?}");
        fs::write(&path, after)?;
    }
    let Err(said) = check(&k8s, &[step]) else { bail!("{step}: nothing was found") };
    let said = said.to_string();
    for Mistake { file, wrong, said: expected, .. } in mistakes {
        ensure!(said.contains(expected), "{wrong:?} in {file} was not found, as {expected:?} in\n{said}");
    }
    Ok(())
}

#[test]
fn what_kubernetes_would_refuse_is_found() -> Result<()> {
    let monitor = "components/monitoring/podmonitor.yaml";
    let issuer = "components/cert-manager/issuer.yaml";
    let client = "components/cert-manager/certificate-client.yaml";
    finds(
        "objects",
        &[
            mistake("base/statefulset.yaml", "minReadySeconds:", "minReadySecond:", "'minReadySecond' was unexpected"),
            mistake("base/service-client.yaml", "port: 11001", "port: pull", "'pull' is not of type 'integer'"),
            mistake("base/poddisruptionbudget.yaml", "policy/v1", "policy/v1beta1", "there is no policy/v1beta1"),
            mistake(
                "base/networkpolicy.yaml",
                "podSelector:\n    match",
                "podSelectors:\n    match",
                "'podSelectors' was",
            ),
            mistake(client, "client auth", "clients", "'clients' is not one of"),
            mistake(
                issuer,
                "    secretName: casbah-peers-ca\n",
                "    secret: casbah-peers-ca\n",
                "'secret' was unexpected",
            ),
            mistake(monitor, "scrapeTimeout", "scrapeTimeouts", "'scrapeTimeouts' was unexpected"),
        ],
    )
}

#[test]
fn a_pod_that_could_do_more_than_it_has_to_is_found() -> Result<()> {
    let set = "base/statefulset.yaml";
    finds(
        "objects",
        &[
            mistake(
                set,
                "readOnlyRootFilesystem: true",
                "readOnlyRootFilesystem: false",
                "wants readOnlyRootFilesystem",
            ),
            mistake(set, "drop: [ALL]", "drop: [NET_RAW]", "wants capabilities.drop: [ALL]"),
            mistake(set, "runAsNonRoot: true", "runAsNonRoot: false", "wants runAsNonRoot"),
            mistake(set, "runAsUser: 65532", "runAsUser: 0", "wants runAsUser other than 0"),
            mistake(set, "allowPrivilegeEscalation: false", "allowPrivilegeEscalation: true", "wants allowPrivilege"),
            mistake(set, "type: RuntimeDefault", "type: Unconfined", "wants seccompProfile RuntimeDefault"),
            mistake(
                set,
                "containerPort: 11002",
                "containerPort: 11002\n          hostPort: 11002",
                "wants no hostPort",
            ),
            mistake(
                set,
                "serviceAccountName: casbah",
                "serviceAccountName: default",
                "wants a service account of its own",
            ),
            mistake(set, "enableServiceLinks: false", "enableServiceLinks: true", "enableServiceLinks is on"),
            mistake(
                "base/networkpolicy.yaml",
                "- port: push",
                "- port: peers",
                "lets anybody come to the ports of peers",
            ),
            mistake(
                "overlays/prod/namespace.yaml",
                "enforce: restricted",
                "enforce: baseline",
                "does not enforce the restr",
            ),
            mistake(
                "components/cert-manager/certificate-node.yaml",
                "    name: casbah-peers\n",
                "    name: casbah-clients\n",
                "clients and peers have one authority",
            ),
        ],
    )
}

#[test]
fn what_does_not_fit_together_is_found() -> Result<()> {
    let set = "base/statefulset.yaml";
    let toml = "base/node.toml";
    finds(
        "objects",
        &[
            mistake(set, "path: /livez", "path: /readyz", "livenessProbe does not ask /livez"),
            mistake(set, "podManagementPolicy: Parallel", "podManagementPolicy: OrderedReady", "is not Parallel"),
            mistake(set, "(CASBAH_NODE__NAME).", "(POD_NAME).", "$(POD_NAME) is not set before it"),
            mistake(set, "GracePeriodSeconds: 3660", "GracePeriodSeconds: 10", "preStop takes 10 s of a grace of 10 s"),
            mistake(
                set,
                "secretName: casbah-peers-tls",
                "secretName: casbah-peer",
                "nobody makes the Secret casbah-peer",
            ),
            mistake(set, "value: 80GiB", "value: 95GiB", "95GiB is more than 90 % of the volume"),
            mistake(set, "whenScaled: Retain", "whenScaled: Delete", "volumes do not outlive their pods"),
            mistake(
                set,
                "mountPath: /etc/casbah/config",
                "subPath: x\n          mountPath: /etc/casbah/config",
                "by subPath",
            ),
            mistake("base/service-peers.yaml", "Addresses: true", "Addresses: false", "no cluster would form"),
            mistake("base/service-client.yaml", "targetPort: push", "targetPort: admin", "shows clients a port"),
            mistake(
                "components/load-balancer/service.yaml",
                "targetPort: push",
                "targetPort: pull",
                "lets anybody in the",
            ),
            mistake(
                "base/poddisruptionbudget.yaml",
                "maxUnavailable: 1",
                "maxUnavailable: 2",
                "more than one pod be evicted",
            ),
            mistake("base/poddisruptionbudget.yaml", "AlwaysAllow", "IfHealthyBudget", "holds up the eviction"),
            mistake("base/networkpolicy.yaml", "- port: push", "- port: shove", "no pod has a port shove"),
            mistake(toml, "casbah-peers:7980", "casbah-0.casbah-peers:7980", "not the headless service alone"),
            mistake(toml, "bootstrap_expect = 3", "bootstrap_expect = 5", "no cluster forms"),
            mistake(toml, "[::]:8982", "127.0.0.1:8982", "the ports admin are not those that the node listens on"),
            mistake(toml, "/etc/casbah/server/ca.crt", "/etc/casbah/clients/ca.crt", "is in no Secret that is mounted"),
            mistake(
                "overlays/prod/certificate.yaml",
                "- casbah.casbah.svc\n",
                "- casbah.svc\n",
                "name casbah.casbah.svc",
            ),
            mistake(
                "components/monitoring/podmonitor.yaml",
                "path: /metrics",
                "path: /metric",
                "does not ask /metrics",
            ),
        ],
    )
}

#[test]
fn names_that_lead_nowhere_are_found() -> Result<()> {
    finds(
        "objects",
        &[
            mistake(
                "base/statefulset.yaml",
                "serviceName: casbah-peers",
                "serviceName: casbah-nodes",
                "no Service casbah-nodes",
            ),
            mistake(
                "base/service-client.yaml",
                "  selector:\n    app.kubernetes.io/name: casbah",
                "  selector:\n    app.kubernetes.io/name: cache",
                "Service/casbah: its selector matches no pod",
            ),
            mistake(
                "base/statefulset.yaml",
                "serviceAccountName: casbah",
                "serviceAccountName: cache",
                "no ServiceAccount cache",
            ),
            mistake(
                "base/kustomization.yaml",
                "- node.toml",
                "- casbah.toml=node.toml",
                "node.toml is in no ConfigMap",
            ),
        ],
    )
}

#[test]
fn a_pod_that_could_not_leave_or_could_ask_for_more_than_that_is_found() -> Result<()> {
    let set = "base/statefulset.yaml";
    let (role, binding) = ("base/role.yaml", "base/rolebinding.yaml");
    finds(
        "objects",
        &[
            mistake(
                set,
                "GracePeriodSeconds: 3660",
                "GracePeriodSeconds: 3600",
                "a grace of 3600 s is less than 10 s of",
            ),
            mistake(set, "ServiceAccountToken: true", "ServiceAccountToken: false", "no token is mounted"),
            mistake("base/serviceaccount.yaml", "Token: false", "Token: true", "gives its token to every pod"),
            mistake(role, "verbs: [get]", "verbs: [get, list]", "allows something other than to look"),
            mistake(binding, "kind: Role\n", "kind: ClusterRole\n", "there is no ClusterRole casbah"),
            mistake(
                binding,
                "- kind: ServiceAccount\n  name: casbah",
                "- kind: ServiceAccount\n  name: default",
                "is not for",
            ),
            mistake(
                "base/networkpolicy.yaml",
                "    - port: 443\n",
                "    - port: 444\n",
                "lets pods go to the API server",
            ),
        ],
    )?;
    let other = "overlays/prod/statefulset.yaml";
    finds(
        "objects",
        &[
            mistake(
                role,
                "resourceNames: [casbah]\n",
                "resourceNames: [casbah, other]\n",
                "allows something other than",
            ),
            mistake(
                other,
                "value: 5h",
                "value: 6h",
                "a grace of 18060 s is less than 10 s of preStop, 21600 s to leave",
            ),
            mistake(
                "base/kustomization.yaml",
                "- rolebinding.yaml\n",
                "",
                "nothing lets a pod ask whether it is removed",
            ),
        ],
    )?;
    finds("objects", &[mistake(set, "KUBERNETES__DRAIN_DEADLINE", "KUBERNETES__DRAIN", "DRAIN_DEADLINE is not set")])
}

#[test]
fn what_cannot_be_rendered_is_found() -> Result<()> {
    let component = "components/cert-manager/kustomization.yaml";
    finds("objects", &[mistake(component, "- issuer.yaml", "- issuers.yaml", "cannot be rendered")])?;
    let base = "base/kustomization.yaml";
    finds("objects", &[mistake(base, "resources:", "commonLabels: {a: b}\nresources:", "'commonLabels' is deprecated")])
}

#[test]
fn alerts_that_prometheus_would_refuse_or_that_do_not_fire_are_found() -> Result<()> {
    let rules = "components/monitoring/rules.yaml";
    finds("rules", &[mistake(rules, "resets(casbah", "reset(casbah", "unknown function")])?;
    finds("rules", &[mistake(rules, "reason) (casbah_store_read_only", "reason) (casbah_store_readonly", "FAILED")])?;
    let untested = "- alert: CasbahUntested\n      expr: up == 3\n    - alert: CasbahNoLeader";
    finds("rules", &[mistake(rules, "- alert: CasbahNoLeader", untested, "no test lets these fire: CasbahUntested")])
}

#[test]
fn a_careless_script_is_found() -> Result<()> {
    finds("shell", &[mistake("check.sh", "cp -r \"$here/base\"", "cp -r $here/base", "SC2086")])
}

// === the node in a pod

/// What a pod's container is told by its environment, as the kubelet would.
fn environment(container: &Value, pod: &str, zone: &str) -> Result<Vec<(String, String)>> {
    let mut told: Vec<(String, String)> = Vec::new();
    for variable in container.pointer("/env").and_then(Value::as_array).context("no env")? {
        let part = |pointer: &str| variable.pointer(pointer).and_then(Value::as_str);
        let name = part("/name").context("no name")?;
        let mut value = match part("/valueFrom/fieldRef/fieldPath") {
            Some("metadata.name") => pod.to_owned(),
            Some("metadata.labels['topology.kubernetes.io/zone']") => zone.to_owned(),
            Some(other) => bail!("{name}: {other}"),
            None => part("/value").context("no value")?.to_owned(),
        };
        for (earlier, given) in &told {
            value = value.replace(&format!("$({earlier})"), given);
        }
        told.push((name.to_owned(), value));
    }
    Ok(told)
}

/// The configuration that a pod of a rendering runs with, as `casbah config show` prints it.
fn configuration(name: &str, pod: &str, zone: &str) -> Result<String> {
    let objects = rendered(name)?;
    let config =
        objects.iter().find_map(|object| object.pointer("/data/node.toml")?.as_str()).context("no node.toml")?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("node.toml");
    fs::write(&path, config)?;
    let path = path.to_str().context("a temporary path is UTF-8")?;
    let container =
        of_kind(&objects, "StatefulSet")?.pointer("/spec/template/spec/containers/0").context("no container")?;
    let run = |subcommand: &str| -> Result<String> {
        let mut command = process::command(&["config", subcommand, "--config", path]);
        command.envs(environment(container, pod, zone)?);
        let output = process::run_command(command)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{name}: config {subcommand}: {said}");
        Ok(String::from_utf8(output.stdout)?)
    };
    run("check")?;
    run("show")
}

#[test]
fn casbah_takes_the_configuration_of_every_pod() -> Result<()> {
    for name in ["base", "dev", "prod"] {
        for (pod, zone) in [("casbah-0", ""), ("casbah-12", "europe-west1-b")] {
            let shown = configuration(name, pod, zone)?;
            for line in [
                format!("name = \"{pod}\""),
                format!("advertise = \"{pod}.casbah-peers:7980\""),
                "join = [\"casbah-peers:7980\"]".to_owned(),
            ] {
                assert!(shown.lines().any(|shown| shown == line), "{name}: no {line} in\n{shown}");
            }
            let zone_is_told = shown.lines().any(|line| line == format!("zone = \"{zone}\""));
            assert!(zone_is_told || zone.is_empty(), "{name}: no zone {zone} in\n{shown}");
        }
    }
    Ok(())
}

// === alerts, dashboard and their documents

/// The words of a text that are names of metrics.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c: char| !is_part(c));
    words.filter(|word| word.starts_with("casbah_")).map(str::to_owned).collect()
}

#[test]
fn alerts_and_dashboard_ask_only_for_metrics_that_there_are() -> Result<()> {
    let reference = text("docs/reference/metrics.md")?;
    let headings = reference.lines().filter_map(|line| line.strip_prefix("## `")?.strip_suffix('`'));
    let known: BTreeSet<&str> = headings.collect();
    for file in ["rules.yaml", "rules_test.yaml", "dashboard.json"] {
        let asked = metrics_in(&text(&format!("deploy/k8s/components/monitoring/{file}"))?);
        assert!(asked.len() > 10, "{file} asks for {asked:?} alone");
        for metric in asked {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|part| metric.strip_suffix(part));
            let is_known = known.contains(metric.as_str()) || base.is_some_and(|base| known.contains(base));
            assert!(is_known, "{file}: there is no {metric}");
        }
    }
    Ok(())
}

#[test]
fn every_alert_has_its_section_and_every_section_its_alert() -> Result<()> {
    let objects = rendered("prod")?;
    let groups = of_kind(&objects, "PrometheusRule")?["spec"]["groups"].as_array().context("no groups")?;
    let rules: Vec<&Value> = groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten()).collect();
    let mut alerts = BTreeSet::new();
    for rule in rules {
        let alert = rule["alert"].as_str().context("a rule is no alert")?;
        let runbook = format!("docs/operations/alerts.md#{}", alert.to_lowercase());
        assert_eq!(rule["annotations"]["runbook"], runbook, "{alert}");
        alerts.insert(alert.to_owned());
    }
    let page = text("docs/operations/alerts.md")?;
    let sections: BTreeSet<String> =
        page.lines().filter_map(|line| Some(line.strip_prefix("## ")?.to_owned())).collect();
    assert_eq!(alerts, sections, "left: rules.yaml, right: docs/operations/alerts.md");
    Ok(())
}
