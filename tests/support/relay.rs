//! A network between a client and an agent that a test cuts: nothing arrives any more, and nobody is told.

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Passes on what comes, while it is whole.
pub struct Relay {
    pub address: String,
    whole: Arc<watch::Sender<bool>>,
}

impl Relay {
    pub async fn to(agent: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let whole = Arc::new(watch::Sender::new(true));
        let (state, agent) = (Arc::clone(&whole), agent.to_owned());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (whole, agent) = (state.subscribe(), agent.clone());
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(agent).await else { return };
                    let (near_out, near_in) = near.into_split();
                    let (far_out, far_in) = far.into_split();
                    let there = pass(near_out, far_in, whole.clone());
                    tokio::join!(there, pass(far_out, near_in, whole));
                });
            }
        });
        Self { address, whole }
    }

    pub fn cut(&self) {
        self.whole.send_replace(false);
    }

    /// New connections pass again, and what was under way arrives.
    pub fn mend(&self) {
        self.whole.send_replace(true);
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut whole: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if whole.wait_for(|whole| *whole).await.is_err()
            || to.write_all(&buffer[..length]).await.is_err()
        {
            break;
        }
    }
}
