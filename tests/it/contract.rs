//! The wire contract must be the public APIs': names and numbers as the clients' own descriptors have them, and no
//! change of ours without a visible one in `golden/contract.txt`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::{env, fs};

use anyhow::{Context as _, Result, bail, ensure};
use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, MethodDescriptorProto,
    ServiceDescriptorProto, field_descriptor_proto,
};

/// Prints the descriptors of all modules that BuildStream generated from .proto files, as one `FileDescriptorSet`.
const PRINT_DESCRIPTORS: &str = r#"
import importlib, pkgutil, sys
import buildstream._protos as protos
from google.protobuf import descriptor_pb2

descriptors = descriptor_pb2.FileDescriptorSet()
for module in pkgutil.walk_packages(protos.__path__, protos.__name__ + "."):
    if module.name.endswith("_pb2"):
        file = importlib.import_module(module.name).DESCRIPTOR
        descriptors.file.add().ParseFromString(file.serialized_pb)
sys.stdout.buffer.write(descriptors.SerializeToString())
"#;

/// What the wheel ships of our contract. Its other packages are casd's own calls, BuildStream 1's services and HTTP
/// annotations.
const PACKAGES_IN_THE_WHEEL: [&str; 6] = [
    "build.bazel.remote.asset.v1",
    "build.bazel.remote.execution.v2",
    "build.bazel.semver",
    "google.bytestream",
    "google.longrunning",
    "google.rpc",
];

#[test]
fn every_message_and_number_matches_the_descriptors_that_buildstream_ships() -> Result<()> {
    let wheel = descriptors_of_the_wheel()?;
    let packages: BTreeSet<&str> = wheel.file.iter().map(|file| file.package()).collect();
    for package in PACKAGES_IN_THE_WHEEL {
        ensure!(packages.contains(package), "the wheel lacks {package}: {packages:?}");
    }

    // Ours may be a superset: the public APIs have grown since the wheel was built.
    let ours = Contract::of(&our_descriptors()?, |_| true);
    let theirs = Contract::of(&wheel, |package| PACKAGES_IN_THE_WHEEL.contains(&package));
    let differences: Vec<String> = theirs
        .0
        .iter()
        .filter(|(name, shape)| ours.0.get(*name) != Some(*shape))
        .map(|(name, shape)| {
            let ours = ours.0.get(name).map_or("missing", String::as_str);
            format!("{name}: BuildStream has \"{shape}\", we have \"{ours}\"")
        })
        .collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

#[test]
fn a_change_of_the_wire_contract_is_a_visible_diff() -> Result<()> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("it/golden/contract.txt");
    // Well-known types are not ours to pin.
    let now = Contract::of(&our_descriptors()?, |package| package != "google.protobuf").to_string();
    if env::var_os("CASBAH_BLESS").is_some() {
        fs::write(&golden, &now).with_context(|| format!("write {}", golden.display()))?;
        return Ok(());
    }
    let then = fs::read_to_string(&golden).with_context(|| format!("read {}", golden.display()))?;
    let (then, now): (BTreeSet<&str>, BTreeSet<&str>) = (then.lines().collect(), now.lines().collect());
    let gone = then.difference(&now).map(|line| format!("- {line}"));
    let added = now.difference(&then).map(|line| format!("+ {line}"));
    let changes: Vec<String> = gone.chain(added).collect();
    assert!(changes.is_empty(), "meant? then run this test with CASBAH_BLESS=1\n{}", changes.join("\n"));
    Ok(())
}

#[test]
fn the_descriptors_carry_no_comments() -> Result<()> {
    assert!(our_descriptors()?.file.iter().all(|file| file.source_code_info.is_none()));
    Ok(())
}

fn our_descriptors() -> Result<FileDescriptorSet> {
    FileDescriptorSet::decode(casbah_proto::FILE_DESCRIPTOR_SET).context("our descriptors do not decode")
}

fn descriptors_of_the_wheel() -> Result<FileDescriptorSet> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/python");
    if !python.exists() {
        bail!("{} is absent, with BuildStream's descriptors: run make test-env", python.display());
    }
    let output = Command::new(&python)
        .args(["-c", PRINT_DESCRIPTORS])
        .output()
        .with_context(|| format!("run {}", python.display()))?;
    ensure!(
        output.status.success(),
        "BuildStream's descriptors cannot be read, run make test-env:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    FileDescriptorSet::decode(output.stdout.as_slice()).context("BuildStream's descriptors do not decode")
}

/// Everything that a peer can see of a set of .proto files: from the full name of a package, message, field, enum,
/// value, service or method to its shape, in which a field's number comes first.
struct Contract(BTreeMap<String, String>);

impl Contract {
    fn of(descriptors: &FileDescriptorSet, wanted: impl Fn(&str) -> bool) -> Contract {
        let mut contract = Contract(BTreeMap::new());
        for file in descriptors.file.iter().filter(|file| wanted(file.package())) {
            let package = file.package();
            contract.add(package, format!("package {}", file.syntax()));
            file.message_type.iter().for_each(|message| contract.add_message(package, message));
            file.enum_type.iter().for_each(|enumeration| contract.add_enum(package, enumeration));
            file.service.iter().for_each(|service| contract.add_service(package, service));
        }
        contract
    }

    fn add(&mut self, name: &str, shape: String) {
        if let Some(other) = self.0.insert(name.to_owned(), shape.clone()) {
            assert_eq!(other, shape, "{name} has two shapes"); // a package of several files has one, several times
        }
    }

    fn add_message(&mut self, scope: &str, message: &DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        let is_map_entry = message.options.as_ref().is_some_and(|options| options.map_entry());
        self.add(&name, if is_map_entry { "map entry" } else { "message" }.to_owned());
        for field in &message.field {
            self.add(&format!("{name}.{}", field.name()), shape_of_field(message, field));
        }
        message.nested_type.iter().for_each(|nested| self.add_message(&name, nested));
        message.enum_type.iter().for_each(|enumeration| self.add_enum(&name, enumeration));
    }

    fn add_enum(&mut self, scope: &str, enumeration: &EnumDescriptorProto) {
        let name = format!("{scope}.{}", enumeration.name());
        self.add(&name, "enum".to_owned());
        for value in &enumeration.value {
            self.add(&format!("{name}.{}", value.name()), value.number().to_string());
        }
    }

    fn add_service(&mut self, scope: &str, service: &ServiceDescriptorProto) {
        let name = format!("{scope}.{}", service.name());
        self.add(&name, "service".to_owned());
        for method in &service.method {
            self.add(&format!("{name}.{}", method.name()), shape_of_method(method));
        }
    }
}

/// Sorted lines of `name = shape`.
impl std::fmt::Display for Contract {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|(name, shape)| writeln!(f, "{name} = {shape}"))
    }
}

/// `number [repeated|optional] type [oneof name]`. In proto3 the label of every other field is "optional" without being
/// so: only the keyword's own mark counts.
fn shape_of_field(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let label = match field.label() {
        field_descriptor_proto::Label::Repeated => "repeated ",
        field_descriptor_proto::Label::Required => "required ",
        field_descriptor_proto::Label::Optional if field.proto3_optional() => "optional ",
        field_descriptor_proto::Label::Optional => "",
    };
    let kind = match field.r#type() {
        kind @ (field_descriptor_proto::Type::Message
        | field_descriptor_proto::Type::Enum
        | field_descriptor_proto::Type::Group) => {
            format!("{} {}", name_of(kind), field.type_name().trim_start_matches('.'))
        }
        scalar => name_of(scalar),
    };
    let oneof = field
        .oneof_index
        .filter(|_| !field.proto3_optional())
        .and_then(|index| message.oneof_decl.get(usize::try_from(index).ok()?))
        .map_or_else(String::new, |oneof| format!(" oneof {}", oneof.name()));
    format!("{} {label}{kind}{oneof}", field.number())
}

fn shape_of_method(method: &MethodDescriptorProto) -> String {
    let stream = |is_stream| if is_stream { "stream " } else { "" };
    format!(
        "rpc {}{} -> {}{}",
        stream(method.client_streaming()),
        method.input_type().trim_start_matches('.'),
        stream(method.server_streaming()),
        method.output_type().trim_start_matches('.'),
    )
}

fn name_of(kind: field_descriptor_proto::Type) -> String {
    kind.as_str_name().trim_start_matches("TYPE_").to_lowercase()
}
