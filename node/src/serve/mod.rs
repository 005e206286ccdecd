//! The public services: Capabilities, CAS, ByteStream, Remote Asset.
