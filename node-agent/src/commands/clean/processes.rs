//! The programs that would restore removed objects.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::bird;

/// The programs that listen on a socket in the run directory, one message each.
pub fn running(run_dir: &Path) -> Vec<String> {
    let sockets = [
        ("BIRD", run_dir.join(bird::DIR).join(bird::SOCKET)),
        ("The udp relay", run_dir.join(netweft_udp_relay::SOCKET)),
    ];
    let running = sockets.iter().filter(|(_, socket)| is_listened_at(socket));
    running
        .map(|(program, _)| format!("{program} runs on this node: uninstall netweft first."))
        .collect()
}

/// The kernel refuses a connection to a socket whose owner has ended. Any other result, for example that the socket has another type
/// (`unix_find_other`), means that a process has the socket open.
fn is_listened_at(socket: &Path) -> bool {
    match UnixStream::connect(socket) {
        Ok(_) => true,
        Err(error) => !matches!(
            error.kind(),
            ErrorKind::NotFound | ErrorKind::ConnectionRefused
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    #[test]
    fn running_lists_only_open_sockets_of_bird_and_relay() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join(bird::DIR).join(bird::SOCKET);
        std::fs::create_dir(dir.path().join(bird::DIR)).unwrap();
        assert_eq!(running(dir.path()), Vec::<String>::new());
        let bird = UnixListener::bind(socket).unwrap();
        let relay = UnixDatagram::bind(dir.path().join(netweft_udp_relay::SOCKET)).unwrap();
        assert_eq!(running(dir.path()).len(), 2);
        drop((bird, relay));
        assert_eq!(running(dir.path()), Vec::<String>::new());
    }
}
