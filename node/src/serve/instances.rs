//! The instance names that are served: all, or those that the configuration lists.
//!
//! Results of actions and assets are kept per instance, since its name is part of their keys. Blobs are shared: a digest
//! means the same bytes everywhere, and whoever knows one could have made them.

use std::sync::Arc;

use tonic::Status;
use tracing::Span;

use crate::config::InstanceNames;
use crate::observe::calls;

/// The longest instance name that is taken. It is part of every key of the indexes.
const NAME_BYTES_MAX: usize = 1024;

/// Tells instance names that are served from others. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Instances {
    names: Arc<InstanceNames>,
}

// === impl Instances ===

impl Instances {
    /// These.
    pub fn new(names: InstanceNames) -> Instances {
        Instances { names: Arc::new(names) }
    }

    /// Whether calls for this instance are served; it becomes known to the call's span.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` otherwise. Not `NOT_FOUND`: a client that is set up wrongly would take it for a miss, and build
    /// everything anew without a word. Other names are not told: they may be a secret of other teams.
    pub(super) fn check(&self, name: &str) -> Result<(), Status> {
        calls::record_instance(&Span::current(), name);
        if name.len() > NAME_BYTES_MAX {
            let message = format!("the instance name has {} bytes where {NAME_BYTES_MAX} are allowed", name.len());
            return Err(Status::invalid_argument(message));
        }
        match &*self.names {
            InstanceNames::Listed(names) if !names.contains(name) => Err(Status::invalid_argument(match name {
                "" => "this server has no instance without a name; tell the client which instance to use".to_owned(),
                name => format!("this server has no instance \"{name:.200}\""),
            })),
            InstanceNames::Any | InstanceNames::Listed(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    #[test]
    fn without_a_list_every_name_is_served() {
        for name in ["", "main", "team/a"] {
            assert!(Instances::default().check(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn with_a_list_no_other_name_is_served() {
        let instances = Instances::new(InstanceNames::Listed(["main", "team/a"].map(str::to_owned).into()));
        for name in ["main", "team/a"] {
            assert!(instances.check(name).is_ok(), "{name}");
        }
        for name in ["", "team", "team/", "team/a/b", "Main", "main/"] {
            let status = instances.check(name).unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{name}");
            assert!(!status.message().contains("team/a\"") && !status.message().contains("main\""), "{status}");
        }
    }

    #[test]
    fn an_endless_name_is_refused() {
        let name = "i".repeat(NAME_BYTES_MAX + 1);
        assert_eq!(Instances::default().check(&name).unwrap_err().code(), Code::InvalidArgument);
        assert!(Instances::default().check(&name[1..]).is_ok());
    }
}
