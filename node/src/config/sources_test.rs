use std::time::Duration;

use super::*;
use crate::config::{
    Clients, ClusterConfig, InstanceNames, ListenAddress, Permissions, RebalancePolicy, Services, SyncPolicy,
};

fn machine() -> Machine {
    Machine {
        host_name: "host-1".into(),
        current_dir: "/here".into(),
        data_dir: "/data/casbah".into(),
        ..Machine::default()
    }
}

fn with_flags(set: &[&str]) -> Sources {
    Sources { set: set.iter().map(|&text| text.to_owned()).collect(), machine: machine(), ..Sources::default() }
}

fn with_environment(variables: &[(&str, &str)]) -> Sources {
    let environment = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
    Sources { environment, machine: machine(), ..Sources::default() }
}

/// Loads a file called casbah.toml, and further sources; the folder must outlive what is looked at.
fn load(text: &str, further: Sources) -> (tempfile::TempDir, Result<Loaded, ConfigErrors>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("casbah.toml");
    std::fs::write(&path, text).unwrap();
    let loaded = Sources { file: Some(path), ..further }.load();
    (folder, loaded)
}

fn file(text: &str) -> Config {
    load(text, with_flags(&[])).1.unwrap().config
}

/// Each error and its hint, with the folder of the file left out.
fn errors(loaded: Result<Loaded, ConfigErrors>) -> Vec<String> {
    let text = |error: &ConfigError| {
        let message = error.to_string();
        let message =
            message.split_once("casbah.toml").map_or(message.clone(), |(_, rest)| format!("casbah.toml{rest}"));
        error.hint().map_or(message.clone(), |hint| format!("{message} | {hint}"))
    };
    loaded.unwrap_err().0.iter().map(text).collect()
}

fn file_errors(text: &str) -> Vec<String> {
    errors(load(text, with_flags(&[])).1)
}

#[test]
fn without_any_configuration_a_node_serves_this_machine_alone() {
    let config = with_flags(&[]).load().unwrap().config;
    assert_eq!(config.node.name, "host-1");
    assert_eq!(config.node.dir, Path::new("/data/casbah"));
    assert_eq!(config.store.capacity_bytes, 50 << 30);
    assert_eq!(config.store.retention_floor, Duration::from_secs(3 * 3600));
    assert_eq!(config.store.sync, SyncPolicy::Interval(Duration::from_millis(50)));
    let [listener] = &*config.listeners else { panic!("{:?}", config.listeners) };
    assert_eq!(listener.address, ListenAddress { host: "localhost".into(), port: 8980 });
    assert_eq!(listener.tls, None);
    assert_eq!(listener.clients, Clients::Anyone);
    assert_eq!(listener.allow, Permissions { read: true, write: true, admin: false });
    assert_eq!(listener.services, Services::All);
}

#[test]
fn the_flags_are_enough_for_a_node() {
    let flags = Sources {
        dir: Some("data".into()),
        listen: vec!["localhost:1".into(), "[::1]:2".into()],
        ..with_flags(&["store.capacity=22MB"])
    };
    let config = flags.load().unwrap().config;
    assert_eq!(config.node.dir, Path::new("/here/data"));
    assert_eq!(config.store.capacity_bytes, 22_000_000);
    assert_eq!(config.listeners.len(), 2);
    assert!(config.listeners.iter().all(|listener| listener.allow.write));
}

#[test]
fn the_documented_pair_of_buildstream_is_two_listeners() {
    let folder = load(
        r#"
        [[listener]]
        address = "[::]:11001"
        tls = { certificate = "server.crt", key = "/keys/server.key" }

        [[listener]]
        address = "[::]:11002"
        tls = { certificate = "server.crt", key = "/keys/server.key" }
        clients = "certificate"
        authorized = "authorized.crt"
        allow = ["read", "write"]
        "#,
        with_flags(&[]),
    );
    let config = folder.1.unwrap().config;
    let [public, private] = &*config.listeners else { panic!("{:?}", config.listeners) };
    assert_eq!(public.allow, Permissions { read: true, ..Permissions::default() });
    assert_eq!(public.tls.as_ref().unwrap().certificate, folder.0.path().join("server.crt"));
    assert_eq!(public.tls.as_ref().unwrap().key, Path::new("/keys/server.key"));
    let authorized = Some(folder.0.path().join("authorized.crt"));
    assert_eq!(private.clients, Clients::Certificate { authorized, authorities: None });
}

#[test]
fn later_sources_win_key_by_key_and_each_value_knows_its_origin() {
    let further = Sources {
        environment: vec![
            ("CASBAH_STORE__CAPACITY".into(), "2GiB".into()),
            ("CASBAH_INDEX__CAPACITY".into(), "2".into()),
        ],
        ..with_flags(&["store.capacity=3GiB", "listener.0.allow=read,write"])
    };
    let text = "[store]\ncapacity = \"1GiB\"\nretention_floor = \"1h\"\n[index]\ncapacity = 1\n[[listener]]\n";
    let (folder, loaded) = load(text, further);
    let loaded = loaded.unwrap();
    assert_eq!(loaded.config.store.capacity_bytes, 3 << 30);
    assert_eq!(loaded.config.store.retention_floor, Duration::from_secs(3600));
    assert_eq!(loaded.config.index.capacity, 2);
    assert!(loaded.config.listeners.iter().all(|listener| listener.allow.write));
    let origin = |path: &str| loaded.layers.origin(&KeyPath::from_dotted(path));
    let casbah_toml = folder.path().join("casbah.toml");
    assert_eq!(origin("store.capacity"), Origin::Flag { name: "--set" });
    assert_eq!(origin("store.retention_floor"), Origin::File { path: casbah_toml.clone(), line: 3 });
    assert_eq!(origin("index.capacity"), Origin::Environment { name: "CASBAH_INDEX__CAPACITY".into() });
    assert_eq!(origin("listener.0"), Origin::File { path: casbah_toml, line: 6 });
    assert_eq!(origin("listener.0.allow"), Origin::Flag { name: "--set" });
    assert_eq!(origin("node.name"), Origin::Default);
}

#[test]
fn numbers_are_taken_where_texts_are_and_the_other_way_round() {
    assert_eq!(file("[store]\ncapacity = 10e9").store.capacity_bytes, 10_000_000_000);
    assert_eq!(file("[store]\ncapacity = 10_000_000_000").store.capacity_bytes, 10_000_000_000);
    let config = with_environment(&[("CASBAH_NODE__NAME", "42"), ("CASBAH_STORE__SYNC_INTERVAL", "always")]).load();
    let config = config.unwrap().config;
    assert_eq!(config.node.name, "42");
    assert_eq!(config.store.sync, SyncPolicy::Always);
}

#[test]
fn a_list_given_as_a_whole_replaces_the_one_before() {
    let further = with_flags(&["listener=[{ address = \"localhost:7\" }]"]);
    let text = "[[listener]]\naddress = \"localhost:5\"\n[[listener]]\naddress = \"localhost:6\"\n";
    let config = load(text, further).1.unwrap().config;
    assert_eq!(config.listeners.len(), 1);
    assert_eq!(config.listeners.first().unwrap().address.port, 7);
}

#[test]
fn paths_start_where_they_were_written() {
    let further = Sources { dir: Some("d".into()), ..with_flags(&["listener.0.tls.key=k.pem"]) };
    let (folder, loaded) = load("[[listener]]\ntls.certificate = \"c.pem\"\n", further);
    let config = loaded.unwrap().config;
    let tls = config.listeners.first().unwrap().tls.clone().unwrap();
    assert_eq!(config.node.dir, Path::new("/here/d"));
    assert_eq!(tls.certificate, folder.path().join("c.pem"));
    assert_eq!(tls.key, Path::new("/here/k.pem"));
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let text = r#"
[store]
capcity = "1GiB"
capacity = "50 Gob"
retention_floor = 30
sync_interval = "0s"

[index]
capacity = "many"

[extra]
x = 1

[[listener]]
address = ":8980"
clients = "anybody"
allow = ["read", "rite"]
insecure = "yes"
tls = "server.crt"

[[listener]]
address = "0.0.0.0:1"
allow = ["write"]
authorized = "~/authorized.crt"

[[listener]]
address = "0.0.0.0:1"
allow = ["write"]
tls.key = "server.key"
"#;
    let expected = [
        "casbah.toml:3: store.capcity: no such key | did you mean store.capacity?",
        "casbah.toml:4: store.capacity: \"50 Gob\" is not a size | write a number of bytes or a number with a unit, such as \
         500GiB, 22MB or 10e9",
        "casbah.toml:5: store.retention_floor: 30 is not a length of time",
        "casbah.toml:6: store.sync_interval: the interval is not between 1ms and 60s | write \"always\" to sync before every \
         answer, \"never\" to leave it to the system",
        "casbah.toml:9: index.capacity: \"many\" is not a whole number",
        "casbah.toml:11: extra: no such key | `casbah config init` prints all keys with what they mean",
        "casbah.toml:15: listener.0.address: \":8980\" has no host | write localhost:8980 for this machine alone, [::]:8980 \
         for every address it has",
        "casbah.toml:16: listener.0.clients: \"anybody\" is not one of anyone, certificate | did you mean anyone?",
        "casbah.toml:17: listener.0.allow: \"rite\" is not one of read, write, admin | did you mean write?",
        "casbah.toml:18: listener.0.insecure: \"yes\" is not true or false",
        "casbah.toml:19: listener.0.tls: \"server.crt\" is not a table",
        "casbah.toml:24: listener.1.authorized: `~` is not expanded here | write the whole path",
        "casbah.toml:29: listener.2.tls: tls has no certificate | set tls = { certificate = \"server.crt\", key = \
         \"server.key\" }",
    ];
    assert_eq!(file_errors(text), expected);
}

#[test]
fn each_rule_is_kept() {
    let cases: &[(&str, &str)] = &[
        ("node.name = \"a b\"", "\"a b\" is not a name for a node"),
        ("node.name = \"..\"", "\"..\" is not a name for a node"),
        ("node.dir = \"\"", "the path is empty"),
        ("store.capacity = 999999", "999999B is less than the smallest store, 1MB"),
        ("store.capacity = -1", "-1 is not a size"),
        ("store.capacity = true", "true is not a size"),
        ("store.sync_interval = \"2m\"", "the interval is not between 1ms and 60s"),
        ("index.capacity = 0", "an index for 0 assets keeps nothing"),
        ("listener = [{ allow = [] }]", "nothing is allowed here"),
        ("listener = [{ clients = \"certificate\" }]", "clients cannot show certificates without tls"),
        ("listener = [{ tls = { certificate = \"c\" } }]", "tls has no key"),
        ("listener = [{ tls = {} }]", "tls has no certificate"),
        ("listener = [{ tls = {} }]", "tls has no key"),
        ("listener = [{ authorities = \"ca.crt\" }]", "authorities has no effect where anyone may connect"),
        (
            "listener = [{ clients = \"certificate\", tls = { certificate = \"c\", key = \"k\" } }]",
            "no client certificate is known, so nobody could connect",
        ),
        (
            "listener = [{ address = \"[::]:1\", allow = [\"read\", \"write\"] }]",
            "[::]:1 is plaintext, can be reached from other machines, and allows write",
        ),
        (
            "listener = [{ address = \"h.example:1\", allow = [\"admin\"] }]",
            "h.example:1 is plaintext, can be reached from other machines, and allows admin",
        ),
        (
            "listener = [{ address = \"localhost:1\" }, { address = \"127.0.0.1:1\" }]",
            "127.0.0.1:1 is taken by the listener on localhost:1",
        ),
        (
            "admin.address = \"localhost:1\"\nlistener = [{ address = \"[::]:1\" }]",
            "[::]:1 is taken by the admin port on localhost:1",
        ),
        ("admin.address = \"8982\"", "\"8982\" has no port"),
        ("admin.port = 8982", "no such key"),
        ("listener = [{ connection_age = \"100ms\" }]", "connections cannot be younger than 1s"),
        ("instance = [{}]", "the instance has no name"),
        ("instance = [{ name = \"a\" }, { name = \"a\" }]", "the instance \"a\" is there already"),
        ("instance = [{ name = \"/a\" }]", "\"/a\" is not a name for an instance"),
        ("instance = [{ name = \"a//b\" }]", "\"a//b\" is not a name for an instance"),
        ("instance = [{ name = \"team/blobs\" }]", "\"team/blobs\" is not a name for an instance"),
        ("instance = [{ nam = \"a\" }]", "did you mean instance.0.name?"),
        ("instance = \"a\"", "\"a\" is not a list of tables, each under [[instance]]"),
        ("listener = 1", "1 is not a list of tables, each under [[listener]]"),
        ("listener = { address = \"localhost:1\" }", "is not a list of tables, each under [[listener]]"),
        ("listener = [1]", "1 is not a table"),
        ("store = 1", "1 is not a table"),
    ];
    for (text, expected) in cases {
        let errors = file_errors(text);
        assert!(errors.iter().any(|error| error.contains(expected)), "{text}: {errors:?}");
    }
}

const PEERS: &str = "[node]\nname = \"node-1\"\n[peers]\naddress = \"0.0.0.0:7980\"\n\
                     tls = { certificate = \"/p.crt\", key = \"/p.key\" }\nauthorities = \"/ca.crt\"\n";

#[test]
fn a_node_without_peers_is_a_cluster_of_one() {
    let config = with_flags(&[]).load().unwrap().config;
    let cluster = config.cluster;
    assert_eq!((cluster.rebalance, cluster.lost_after), (RebalancePolicy::Automatic, Some(Duration::from_secs(600))));
    let ClusterConfig { name, copies, write_quorum, bootstrap_expect, join, zone, weight, learners, .. } = cluster;
    assert_eq!((&*name, copies, write_quorum, bootstrap_expect), ("casbah", 2, 2, 1));
    assert_eq!((join, &*zone, weight, learners), (vec![], "", 100, 12));
    assert_eq!(config.peers, None);
    assert_eq!(file("[peers]\n").peers, None);
}

#[test]
fn a_node_with_peers_is_told_by_its_name_and_port_unless_it_says_otherwise() {
    let address = |text: &str| text.parse::<ListenAddress>().unwrap();
    let peers = file(PEERS).peers.unwrap();
    assert_eq!(peers.address, address("0.0.0.0:7980"));
    assert_eq!(peers.advertise, address("node-1:7980"));
    assert_eq!(peers.authorities, Path::new("/ca.crt"));
    let config =
        file(&format!("{PEERS}advertise = \"10.0.0.1:1\"\n[cluster]\njoin = [\"casbah-peers:7980\"]\ncopies = 3\n"));
    assert_eq!(config.peers.unwrap().advertise, address("10.0.0.1:1"));
    let cluster = config.cluster;
    assert_eq!((cluster.copies, cluster.write_quorum, cluster.bootstrap_expect), (3, 2, 0), "it waits to be let in");
    assert_eq!(cluster.join, [address("casbah-peers:7980")]);
}

#[test]
fn addresses_to_join_are_given_in_every_source() {
    let addresses = ["node-1:7980", "[::1]:7981"].map(|text| text.parse::<ListenAddress>().unwrap());
    for given in ["node-1:7980, [::1]:7981", "[\"node-1:7980\", \"[::1]:7981\"]"] {
        let set = with_environment(&[("CASBAH_CLUSTER__JOIN", given)]);
        assert_eq!(load(PEERS, set).1.unwrap().config.cluster.join, addresses);
        let set = with_flags(&[&format!("cluster.join={given}")]);
        assert_eq!(load(PEERS, set).1.unwrap().config.cluster.join, addresses);
    }
    let set = with_flags(&["cluster.join=[::1]:7981"]);
    assert_eq!(load(PEERS, set).1.unwrap().config.cluster.join, addresses[1..]);
    let told = file_errors("[cluster]\njoin = [\"node-1:7980\", \"node-2\"]\n");
    assert!(told.iter().any(|error| error.contains("\"node-2\" has no port")), "{told:?}");
}

#[test]
fn a_pod_is_known_by_its_name() {
    let named = |name: &str| PEERS.replace("node-1", name);
    let pod = file(&format!("{}[kubernetes]\ndrain_deadline = \"1h\"\n", named("casbah-eu-12"))).pod.unwrap();
    assert_eq!((&*pod.stateful_set, pod.ordinal, pod.drain_deadline.as_secs()), ("casbah-eu", 12, 3600));
    assert_eq!(file(&named("casbah-12")).pod, None, "it never leaves");
}

#[test]
fn each_rule_of_the_cluster_is_kept() {
    for (text, told) in [
        ("[cluster]\nname = \"a b\"", "\"a b\" is not a name for a cluster"),
        ("[cluster]\nname = \"\"", "\"\" is not a name for a cluster"),
        ("[cluster]\nzone = \"a/b\"", "\"a/b\" is not a name for a zone"),
        ("[cluster]\ncopies = 0", "0 is not between 1 and 8"),
        ("[cluster]\ncopies = 300", "300 is not between 1 and 8"),
        ("[cluster]\nweight = 0", "0 is not between 1 and 10000"),
        ("[repair]\nrate = \"1kB\"", "1kB a second is less than 64KiB"),
        ("[repair]\ninterval = \"999ms\"", "the interval is not between 1s and 24h"),
        ("[repair]\ninterval = \"2d\"", "the interval is not between 1s and 24h"),
        ("[cluster]\nwrite_quorum = 3", "cannot wait for 3 of 2 copies"),
        ("[cluster]\nwrite_quorum = 0", "cannot wait for 0 of 2 copies"),
        ("[cluster]\nlost_after = \"1s\"", "a node cannot be given up so soon"),
        ("[kubernetes]\ndrain_deadline = \"1h\"", "no way to other nodes without [peers]"),
        ("[kubernetes]\ndrain_deadline = \"10ms\"", "a node cannot leave so soon"),
        ("[node]\nname = \"casbah\"\n[kubernetes]\ndrain_deadline = \"1h\"", "\"casbah\" is not the name of a pod"),
        ("[node]\nname = \"casbah-x\"\n[kubernetes]\ndrain_deadline = \"1h\"", "\"casbah-x\" is not the name of a pod"),
        ("[node]\nname = \"-3\"\n[kubernetes]\ndrain_deadline = \"1h\"", "\"-3\" is not the name of a pod"),
        ("[cluster]\nbootstrap_expect = 3", "no way to other nodes without [peers]"),
        ("[cluster]\nbootstrap_expect = 0", "neither form a cluster nor join one"),
        ("[cluster]\njoin = [\"node-1:7980\"]", "no way to other nodes without [peers]"),
        ("[peers]\ntls = { certificate = \"c\", key = \"k\" }\nauthorities = \"a\"", "[peers] has no address"),
        ("[peers]\naddress = \"[::]:7980\"\nauthorities = \"a\"", "[peers] has no tls"),
        ("[peers]\naddress = \"[::]:7980\"\ntls = { certificate = \"c\", key = \"k\" }", "[peers] has no authorities"),
        ("[peers]\naddress = \"[::]:7980\"\ntls = { certificate = \"c\" }\nauthorities = \"a\"", "tls has no key"),
    ] {
        let errors = file_errors(text);
        assert!(errors.iter().any(|error| error.contains(told) && error.contains(" | ")), "{text}: {errors:?}");
    }
    for (further, told) in [
        ("advertise = \"0.0.0.0:7980\"", "0.0.0.0:7980 is not an address that other nodes can connect to"),
        ("advertise = \"node-1:0\"", "node-1:0 is not an address that other nodes can connect to"),
        ("dial_from = \"node-1\"", "\"node-1\" is not an IP address"),
        (
            "[[listener]]\nclients = \"certificate\"\ntls = { certificate = \"c\", key = \"k\" }\nauthorities = \"/ca.crt\"",
            "peers.authorities: these authorities are those of a listener's clients",
        ),
        ("[cluster]\njoin = [\"node-1:0\"]", "node-1:0 is not an address that other nodes can connect to"),
        ("[cluster]\nlearners = 13", "13 is not between 0 and 12"),
        ("[cluster]\nbootstrap_expect = 101\njoin = [\"a:1\"]", "101 is not between 0 and 100"),
        ("[admin]\naddress = \"localhost:7980\"", "0.0.0.0:7980 is taken by the admin port on localhost:7980"),
        ("[[listener]]\naddress = \"localhost:7980\"", "localhost:7980 is taken by the peer port on 0.0.0.0:7980"),
    ] {
        let errors = file_errors(&format!("{PEERS}{further}\n"));
        assert!(matches!(&*errors, [error] if error.contains(told)), "{further}: {errors:?}");
    }
    // A host of that name cannot be looked up.
    let errors = file_errors(&PEERS.replace("node-1", "1"));
    assert!(matches!(&*errors, [error] if error.contains("peers.advertise: 1:7980 is not")), "{errors:?}");
}

#[test]
fn instances_are_listed_or_all_are_served() {
    assert_eq!(file("").instances, InstanceNames::Any);
    let text = "[[instance]]\nname = \"team/a\"\n[[instance]]\nname = \"\"\n";
    assert_eq!(file(text).instances, InstanceNames::Listed(["", "team/a"].map(str::to_owned).into()));
    let loaded = with_environment(&[("CASBAH_INSTANCE__0__NAME", "main")]).load().unwrap();
    assert_eq!(loaded.config.instances, InstanceNames::Listed(["main".to_owned()].into()));
    assert!(errors(with_flags(&["instance.1.name=a"]).load()).concat().contains("no instance before"));
    // They are not listeners.
    let further = Sources { listen: vec!["localhost:1".into()], ..with_flags(&[]) };
    assert!(load(text, further).1.is_ok());
}

#[test]
fn plaintext_writing_to_the_world_can_be_asked_for() {
    let flags = Sources { listen: vec!["0.0.0.0:1".into()], ..with_flags(&[]) };
    let expected = "--listen: listener.0: 0.0.0.0:1 is plaintext, can be reached from other machines, and allows write | set \
                    tls, or listen on localhost; or add --set listener.0.insecure=true, if everybody on the network may \
                    replace what is in the cache";
    assert_eq!(errors(flags.load()), [expected]);
    let insecure = Sources { listen: vec!["0.0.0.0:1".into()], ..with_flags(&["listener.0.insecure=true"]) };
    assert!(insecure.load().is_ok());
    assert!(load("[[listener]]\naddress = \"0.0.0.0:1\"\n", with_flags(&[])).1.is_ok(), "reading is harmless");
}

#[test]
fn unknown_variables_are_told_and_foreign_ones_are_left_alone() {
    let foreign = [
        ("CASBAH_PORT_8980_TCP", "tcp://10.0.0.1:8980"),
        ("CASBAH_SERVICE_HOST", "10.0.0.1"),
        ("CASBAH_NODE_SERVICE_HOST", "10.0.0.1"),
        ("CASBAH_NODE_PORT", "tcp://10.0.0.1:8980"),
        ("CASBAH_LOG", "trace"),
        ("CASBAH", "x"),
        ("XCASBAH_STORE__CAPACITY", "x"),
    ];
    assert!(with_environment(&foreign).load().is_ok());
    let refused = |name: &str| errors(with_environment(&[(name, "1GiB")]).load());
    let meant = "no such key | did you mean CASBAH_STORE__CAPACITY?";
    assert_eq!(refused("CASBAH_STORE__CAPCITY"), [format!("CASBAH_STORE__CAPCITY: {meant}")]);
    assert_eq!(refused("CASBAH_STORE_CAPACITY"), [format!("CASBAH_STORE_CAPACITY: {meant}")]);
    assert_eq!(refused("CASBAH_STOR__CAPACITY"), [format!("CASBAH_STOR__CAPACITY: {meant}")]);
    assert_eq!(refused("CASBAH_STORE"), ["CASBAH_STORE: \"1GiB\" is not a table"]);
    assert_eq!(refused("CASBAH_INDEX__CAPACITY"), ["CASBAH_INDEX__CAPACITY: \"1GiB\" is not a whole number"]);
    assert_eq!(refused("CASBAH_LOG_LEVEL"), ["CASBAH_LOG_LEVEL: no such key | did you mean CASBAH_LOG__LEVEL?"]);
}

#[test]
fn slips_on_the_command_line_are_told() {
    let refused = |text: &str| errors(with_flags(&[text]).load());
    assert_eq!(
        refused("store.capacity"),
        ["--set: \"store.capacity\" is not KEY=VALUE | such as --set store.capacity=500GiB"]
    );
    assert_eq!(
        refused("capacity=1"),
        ["--set: capacity: no such key | did you mean store.capacity or index.capacity?"]
    );
    assert_eq!(refused("listener.1.insecure=true").len(), 1);
    assert!(refused("listener.1.insecure=true").concat().contains("without gaps"));
    assert!(refused("=1").concat().contains("no such key"));
    assert!(refused("log.level=loud").concat().contains("is not one of error, warn, info, debug, trace"));
    assert!(refused("index.capacity=1\nx=2").concat().contains("is not a whole number"));
}

#[test]
fn listen_and_listeners_in_a_file_do_not_mix() {
    let further = Sources { listen: vec!["localhost:1".into()], ..with_flags(&[]) };
    let refused = errors(load("[[listener]]\naddress = \"localhost:2\"\n", further).1);
    assert!(refused.concat().contains("casbah.toml:1 | change one of them with"), "{refused:?}");
}

#[test]
fn a_file_that_is_not_there_or_not_toml_is_told() {
    let absent = Sources { file: Some("/nowhere/casbah.toml".into()), ..with_flags(&[]) }.load().unwrap_err();
    let [error] = &*absent.0 else { panic!("{absent:?}") };
    assert_eq!(error.to_string(), "--config: cannot read /nowhere/casbah.toml");
    assert!(std::error::Error::source(error).is_some());
    let refused = file_errors("[store]\ncapacity = \n");
    assert!(refused.concat().starts_with("casbah.toml:2: not TOML: "), "{refused:?}");
}
