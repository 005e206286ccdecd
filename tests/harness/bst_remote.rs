//! A server as BuildStream's user configuration names it.

use std::path::{Path, PathBuf};

use crate::authority::IdentityFiles;
use crate::process::Endpoint;

/// A server in BuildStream's configuration.
#[derive(Debug, Clone)]
pub struct Remote {
    url: String,
    push: bool,
    kind: &'static str,
    instance: Option<String>,
    server_certificate: Option<PathBuf>,
    client: Option<IdentityFiles>,
    impatient: bool,
}

// === impl Remote ===

impl Remote {
    /// This endpoint, called `localhost` where it is that: pulled from, and both index and storage.
    pub fn of(endpoint: &Endpoint) -> Remote {
        let scheme = if endpoint.tls { "https" } else { "http" };
        Remote {
            url: format!("{scheme}://{}", endpoint.called()),
            push: false,
            kind: "all",
            instance: None,
            server_certificate: None,
            client: None,
            impatient: false,
        }
    }

    /// What it is called in BuildStream's messages.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Pushed to as well.
    #[must_use]
    pub fn pushing(self) -> Remote {
        Remote { push: true, ..self }
    }

    /// Only asked which blobs an artifact has.
    #[must_use]
    pub fn index(self) -> Remote {
        Remote { kind: "index", ..self }
    }

    /// Only asked for blobs.
    #[must_use]
    pub fn storage(self) -> Remote {
        Remote { kind: "storage", ..self }
    }

    /// Called with this instance name.
    #[must_use]
    pub fn instance(self, name: &str) -> Remote {
        Remote { instance: Some(name.to_owned()), ..self }
    }

    /// Called without TLS, whatever it speaks.
    #[must_use]
    pub fn plaintext(self) -> Remote {
        Remote { url: self.url.replace("https://", "http://"), ..self }
    }

    /// Known by this certificate (`server-cert`).
    #[must_use]
    pub fn trusting(self, certificate: &Path) -> Remote {
        Remote { server_certificate: Some(certificate.to_owned()), ..self }
    }

    /// Shown this certificate (`client-cert`, `client-key`).
    #[must_use]
    pub fn showing(self, identity: &IdentityFiles) -> Remote {
        Remote { client: Some(identity.clone()), ..self }
    }

    /// Given up soon: casd's default is 5 attempts in 10 seconds.
    #[must_use]
    pub fn impatient(self) -> Remote {
        Remote { impatient: true, ..self }
    }

    /// Its entry in a list of servers.
    pub(crate) fn yaml(&self) -> String {
        let mut text = format!("  - url: {:?}\n    push: {}\n    type: {}\n", self.url, self.push, self.kind);
        if let Some(instance) = &self.instance {
            text.push_str(&format!("    instance-name: {instance:?}\n"));
        }
        if self.server_certificate.is_some() || self.client.is_some() {
            text.push_str("    auth:\n");
        }
        if let Some(certificate) = &self.server_certificate {
            text.push_str(&format!("      server-cert: {certificate:?}\n"));
        }
        if let Some(client) = &self.client {
            text.push_str(&format!(
                "      client-cert: {:?}\n      client-key: {:?}\n",
                client.certificate, client.key
            ));
        }
        if self.impatient {
            text.push_str("    connection-config:\n      retry-limit: 1\n      retry-delay: 10\n");
        }
        text
    }
}
