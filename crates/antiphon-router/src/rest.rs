//! Telling the leader's agent, which is about to hand over, that nothing is under way here any more.

use std::sync::Arc;
use std::time::Duration;

use antiphon_tls::ClientTls;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::dial;
use crate::orders::What;
use crate::shared::Shared;

/// How long the agent may take to answer.
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// The pause before another attempt.
const PAUSE: Duration = Duration::from_millis(20);

/// Waits until nothing of any session is under way on the leader, and tells its agent, which knows the router by
/// `token`. Ends without a word if sessions go on before that.
pub async fn tell(shared: Arc<Shared>, agent: String, tls: Option<ClientTls>, token: String) {
    if shared.ask(What::Rest).await.is_err() {
        return;
    }
    // The agent waits for two seconds; whoever runs this ends it when the hand-over is done.
    while let Err(why) = post(&agent, tls.as_ref(), &token).await {
        tracing::debug!(agent, why, "could not tell the agent that all is at rest; trying again");
        sleep(PAUSE).await;
    }
}

async fn post(agent: &str, tls: Option<&ClientTls>, token: &str) -> Result<(), String> {
    let ask = async {
        let mut stream = dial::agent(agent, tls).await?;
        let request = format!("POST /routers/{token} HTTP/1.0\r\nHost: {agent}\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let mut head = [0; 12];
        stream.read_exact(&mut head).await?;
        Ok::<_, std::io::Error>(head.ends_with(b"200"))
    };
    match timeout(ANSWER_MAX, ask).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err("it does not know this router".to_owned()),
        Ok(Err(error)) => Err(antiphon_tls::explain(&error)),
        Err(_) => Err("it does not answer".to_owned()),
    }
}
