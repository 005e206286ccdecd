use std::net::SocketAddr;
use std::sync::Mutex;

use http::Response;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use rcgen::SanType;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::authenticate::crypto;
use crate::authenticate::test_certificates::{Made, authority_params, params};

type Asked = Arc<Mutex<Vec<(String, String)>>>;

/// An API server that says the same to everybody, the first of these at first.
struct ApiServer {
    address: SocketAddr,
    authority: Made,
    asked: Asked,
    _tasks: JoinSet<()>,
}

impl ApiServer {
    async fn start(answers: &[(u16, &str)]) -> ApiServer {
        let authority = Made::self_signed(&authority_params("kubernetes"));
        let mut of_server = params("apiserver");
        of_server.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        let shown = authority.issue(&of_server);
        let key = PrivateKeyDer::from_pem_slice(shown.key_pem.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(crypto()).with_safe_default_protocol_versions().unwrap();
        let config = config.with_no_client_auth().with_single_cert(vec![shown.der.clone()], key).unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Asked::default();
        let mut answers: Vec<(u16, String)> = answers.iter().map(|(code, text)| (*code, (*text).to_owned())).collect();
        let (mut tasks, heard) = (JoinSet::new(), asked.clone());
        tasks.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let (code, text) = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
                let heard = heard.clone();
                let answer = service_fn(move |request: Request<Incoming>| {
                    let token = request.headers()[header::AUTHORIZATION].to_str().unwrap().to_owned();
                    heard.lock().unwrap().push((request.uri().path().to_owned(), token));
                    let answer = Response::builder().status(code).body(Full::new(Bytes::from(text.clone())));
                    async move { answer }
                });
                let _broken = server::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            }
        });
        ApiServer { address, authority, asked, _tasks: tasks }
    }

    /// What a pod of this number is told.
    fn pod(&self, ordinal: u32) -> (TempDir, Pod) {
        let account = tempfile::tempdir().unwrap();
        for (name, text) in [("token", "secret\n"), ("namespace", "farm"), ("ca.crt", &self.authority.pem)] {
            std::fs::write(account.path().join(name), text).unwrap();
        }
        let config = PodConfig { stateful_set: "casbah".into(), ordinal, drain_deadline: Duration::from_secs(1) };
        let server = Some(("127.0.0.1".to_owned(), self.address.port()));
        let pod = Pod {
            config,
            account: account.path().to_owned(),
            server,
            patience: ASK_DEADLINE,
            look_pause: Duration::from_millis(1),
        };
        (account, pod)
    }
}

fn of(replicas: &str) -> String {
    format!(
        r#"{{"kind":"StatefulSet","metadata":{{"name":"casbah"}},"spec":{{{replicas}"serviceName":"x"}},"status":{{}}}}"#
    )
}

#[tokio::test]
async fn a_pod_beyond_the_replicas_is_removed_and_any_other_returns() {
    for (replicas, ordinal, fate) in [
        (r#""replicas":3,"#, 2, Fate::Returns),
        (r#""replicas":3,"#, 3, Fate::IsRemoved),
        (r#""replicas":3,"#, 4_000_000_000, Fate::IsRemoved),
        ("", 0, Fate::Returns),
        ("", 1, Fate::IsRemoved),
        (r#""replicas":0,"#, 0, Fate::AllStop),
        (r#""replicas":0,"#, 5, Fate::AllStop),
        (r#""replicas":2,"ordinals":{"start":5},"#, 6, Fate::Returns),
        (r#""replicas":2,"ordinals":{"start":5},"#, 7, Fate::IsRemoved),
        (r#""replicas":2,"ordinals":{"start":5},"#, 4, Fate::IsRemoved),
    ] {
        let api = ApiServer::start(&[(200, &of(replicas))]).await;
        let (_account, pod) = api.pod(ordinal);
        assert_eq!(pod.fate().await.unwrap(), fate, "{replicas} {ordinal}");
        assert_eq!(pod.is_removed().await, fate == Fate::IsRemoved);
        let asked = api.asked.lock().unwrap()[0].clone();
        let path = "/apis/apps/v1/namespaces/farm/statefulsets/casbah".to_owned();
        assert_eq!(asked, (path, "Bearer secret".to_owned()));
    }
}

#[tokio::test]
async fn who_is_refused_is_told_why_and_does_not_ask_again() {
    for (code, text, told) in [
        (401, r#"{"kind":"Status","message":"Unauthorized"}"#, "the API server says 401 Unauthorized: Unauthorized"),
        (403, r#"{"message":"it may not get that"}"#, "the API server says 403 Forbidden: it may not get that"),
        (404, "not JSON", "the API server says 404 Not Found: it gives no reason"),
        (200, "{}", "the API server did not answer with a StatefulSet: missing field `spec` at line 1 column 2"),
        (200, r#"{"spec":{"replicas":-1}}"#, "the API server did not answer with a StatefulSet: invalid value"),
    ] {
        let api = ApiServer::start(&[(code, text)]).await;
        let (_account, pod) = api.pod(3);
        let error = with_causes(&pod.fate().await.unwrap_err());
        assert!(error.starts_with(told), "{error}");
        assert!(!pod.is_removed().await);
        assert_eq!(api.asked.lock().unwrap().len(), 2, "{text}");
    }
}

#[tokio::test]
async fn a_server_that_fails_is_asked_again() {
    let api = ApiServer::start(&[(500, "{}"), (503, ""), (429, ""), (200, &of(r#""replicas":3,"#))]).await;
    let (_account, pod) = api.pod(3);
    assert_eq!(pod.fate().await.unwrap(), Fate::IsRemoved);
    assert_eq!(api.asked.lock().unwrap().len(), 4);
}

#[tokio::test]
async fn an_answer_without_end_is_not_read() {
    let api = ApiServer::start(&[(200, &" ".repeat(ANSWER_BYTES_MAX + 1))]).await;
    let (_account, pod) = api.pod(3);
    assert!(matches!(pod.fate().await.unwrap_err(), AskError::Body(_)));
    assert_eq!(api.asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_token_goes_to_no_server_but_the_one_that_is_known() {
    let (api, other) = (ApiServer::start(&[(200, &of(""))]).await, ApiServer::start(&[(200, &of(""))]).await);
    let (account, mut pod) = api.pod(3);
    std::fs::write(account.path().join("ca.crt"), &other.authority.pem).unwrap();
    assert!(matches!(pod.ask().await.unwrap_err(), AskError::Connect { .. }));
    std::fs::write(account.path().join("ca.crt"), "nothing").unwrap();
    assert!(matches!(pod.fate().await.unwrap_err(), AskError::Authorities(_)));
    pod.server = Some(("localhost".to_owned(), api.address.port()));
    std::fs::write(account.path().join("ca.crt"), &api.authority.pem).unwrap();
    assert!(matches!(pod.ask().await.unwrap_err(), AskError::Connect { .. }), "the name is not in its certificate");
    assert_eq!(api.asked.lock().unwrap().len(), 0);
}

#[tokio::test]
async fn without_a_server_or_an_account_nobody_is_asked() {
    let api = ApiServer::start(&[(200, &of(r#""replicas":1,"#))]).await;
    for missing in ["token", "namespace", "ca.crt"] {
        let (account, pod) = api.pod(3);
        std::fs::remove_file(account.path().join(missing)).unwrap();
        let error = pod.fate().await.unwrap_err();
        assert!(matches!(&error, AskError::NoAccount { path, .. } if path.ends_with(missing)), "{error}");
        assert!(!pod.is_removed().await);
    }
    let (_account, mut pod) = api.pod(3);
    pod.server = None;
    assert!(matches!(pod.fate().await.unwrap_err(), AskError::NoServer));
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_or_says_nothing_is_not_waited_for_long() {
    let api = ApiServer::start(&[(200, "")]).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for address in [silent.local_addr().unwrap(), closed] {
        let (_account, mut pod) = api.pod(3);
        pod.server = Some(("127.0.0.1".to_owned(), address.port()));
        pod.patience = Duration::from_millis(100);
        assert!(matches!(pod.fate().await.unwrap_err(), AskError::TimedOut { .. }));
        assert!(!pod.is_removed().await);
    }
}

#[tokio::test]
async fn a_node_that_leaves_hears_that_it_is_wanted_again() {
    let api = ApiServer::start(&[(200, &of(r#""replicas":3,"#)), (500, ""), (200, &of(r#""replicas":4,"#))]).await;
    let (_account, pod) = api.pod(3);
    assert!(pod.is_removed().await);
    pod.is_wanted().await;
    assert_eq!(api.asked.lock().unwrap().len(), 3);
}
