//! What a service manager is told, as systemd's `sd_notify` has it: ready, still well, stopping. A
//! datagram to the socket named by `NOTIFY_SOCKET`; without that variable nobody is told anything.

use std::{
    env, io,
    os::unix::{
        ffi::OsStrExt,
        net::{SocketAddr, UnixDatagram},
    },
    time::Duration,
};

use tokio::time::sleep;

/// Where to tell, and how often that all is well.
#[derive(Debug)]
pub(super) struct Notifier {
    socket: UnixDatagram,
    to: SocketAddr,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// As the environment asks for; `None` if nobody wants to hear.
    pub(super) fn from_env() -> Option<Self> {
        let name = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())?;
        let watchdog = watchdog(
            env::var("WATCHDOG_USEC").ok().as_deref(),
            env::var("WATCHDOG_PID").ok().as_deref(),
            std::process::id(),
        );
        match Self::open(name.as_bytes(), watchdog) {
            Ok(notifier) => Some(notifier),
            Err(error) => {
                // It may time out then, and will say so itself.
                tracing::warn!(%error, socket = %name.display(), "NOTIFY_SOCKET cannot be used: the service manager is told nothing");
                None
            }
        }
    }

    fn open(name: &[u8], watchdog: Option<Duration>) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        // A manager that does not read must not hold the node up.
        socket.set_nonblocking(true)?;
        Ok(Self { socket, to: address(name)?, watchdog })
    }

    pub(super) fn starting(&self) {
        self.tell("STATUS=starting: recovering, or waiting to be let in");
    }

    pub(super) fn ready(&self, status: &str) {
        self.tell(&format!("READY=1\nSTATUS={}", status.trim_end().replace('\n', " ")));
    }

    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=stopping: handing over, then finishing what is under way");
    }

    /// Says that all is well, twice in each interval of the watchdog, for as long as `well` says so.
    /// Does not return, and does nothing if there is no watchdog.
    pub(super) async fn watch(&self, well: impl Fn() -> bool) {
        let Some(interval) = self.watchdog else { return std::future::pending().await };
        loop {
            if well() {
                self.tell("WATCHDOG=1");
            } else {
                tracing::error!(
                    "this node is not well: the service manager's watchdog is not told otherwise"
                );
            }
            sleep(interval / 2).await;
        }
    }

    fn tell(&self, state: &str) {
        if let Err(error) = self.socket.send_to_addr(state.as_bytes(), &self.to) {
            tracing::warn!(%error, "the service manager was not told");
        }
    }
}

/// A path, or behind `@` a name in the abstract namespace of Linux.
fn address(name: &[u8]) -> io::Result<SocketAddr> {
    match name.strip_prefix(b"@") {
        #[cfg(target_os = "linux")]
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            SocketAddr::from_abstract_name(name)
        }
        #[cfg(not(target_os = "linux"))]
        Some(_) => Err(io::ErrorKind::Unsupported.into()),
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name)),
    }
}

/// The interval of the watchdog, if it is there and means this process.
fn watchdog(usec: Option<&str>, pid: Option<&str>, me: u32) -> Option<Duration> {
    let interval = Duration::from_micros(usec?.parse().ok().filter(|usec| *usec > 0)?);
    pid.is_none_or(|pid| pid.parse() == Ok(me)).then_some(interval)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 512];
        let len = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..len].to_vec()).unwrap()
    }

    #[test]
    fn the_watchdog_is_for_the_process_it_names() {
        let second = Some(Duration::from_secs(1));
        assert_eq!(watchdog(Some("1000000"), None, 7), second);
        assert_eq!(watchdog(Some("1000000"), Some("7"), 7), second);
        for (usec, pid) in
            [(Some("1000000"), Some("8")), (Some("0"), None), (Some("x"), None), (None, Some("7"))]
        {
            assert_eq!(watchdog(usec, pid, 7), None, "{usec:?} {pid:?}");
        }
    }

    #[test]
    fn a_socket_by_path_hears_what_happens() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::open(path.as_os_str().as_bytes(), None).unwrap();
        notifier.starting();
        assert!(heard(&manager).starts_with("STATUS="));
        notifier.ready("node=x\n");
        assert_eq!(heard(&manager), "READY=1\nSTATUS=node=x");
        notifier.stopping();
        assert!(heard(&manager).starts_with("STOPPING=1\n"));
        // Whoever does not listen any more is not waited for.
        drop(manager);
        notifier.stopping();
    }

    #[cfg(target_os = "linux")]
    #[tokio::test(start_paused = true)]
    async fn an_abstract_socket_hears_of_the_watchdog_until_the_node_is_not_well() {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("skein-notify-test-{}", std::process::id());
        let manager =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name.as_bytes()).unwrap()).unwrap();
        manager.set_nonblocking(true).unwrap();
        let notifier = Notifier::open(format!("@{name}").as_bytes(), Some(Duration::from_secs(10))).unwrap();
        let well = AtomicBool::new(true);
        let watched = notifier.watch(|| well.load(Ordering::Relaxed));
        tokio::pin!(watched);
        // Such a socket holds eleven datagrams that nobody has read.
        let while_watched = Duration::from_secs(39);
        assert!(tokio::time::timeout(while_watched, &mut watched).await.is_err(), "it goes on");
        let count = || std::iter::from_fn(|| manager.recv(&mut [0; 64]).ok()).count();
        assert_eq!(count(), 8, "every five seconds");
        well.store(false, Ordering::Relaxed);
        assert!(tokio::time::timeout(while_watched, &mut watched).await.is_err());
        assert_eq!(count(), 0, "not a word once it is not well");
    }
}
