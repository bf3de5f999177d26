//! The first bytes of a connection, which say what it speaks.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// What an HTTP/2 connection begins with (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the client began to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    /// HTTP/2 without TLS, known in advance.
    Http2,
    /// Anything else: HTTP/1, or an error that its parser finds.
    Http1,
    /// Nothing: the connection is closed again.
    Nothing,
}

/// A stream whose first bytes have been looked at, and are read again.
pub(super) struct Opened<S> {
    head: Bytes,
    stream: S,
}

/// Reads until it is clear what the client speaks. The caller limits the time.
pub(super) async fn look<S: AsyncRead + Unpin>(mut stream: S) -> io::Result<(Opened<S>, Speaks)> {
    let mut head = [0; PREFACE.len()];
    let mut len = 0;
    let speaks = loop {
        let (Some(read), Some(want)) = (head.get(..len), PREFACE.get(..len)) else { break Speaks::Http2 };
        if read != want {
            break Speaks::Http1;
        }
        if len == PREFACE.len() {
            break Speaks::Http2;
        }
        let Some(room) = head.get_mut(len..) else { break Speaks::Http2 };
        match stream.read(room).await? {
            0 if len == 0 => break Speaks::Nothing,
            0 => break Speaks::Http1,
            n => len += n,
        }
    };
    let head = Bytes::copy_from_slice(head.get(..len).unwrap_or_default());
    Ok((Opened { head, stream }, speaks))
}

impl<S: AsyncRead + Unpin> AsyncRead for Opened<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.head.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let n = self.head.len().min(buf.remaining());
        buf.put_slice(&self.head.copy_to_bytes(n));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Opened<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// What is made of bytes that come in pieces, and what is read afterwards.
    async fn seen(pieces: &[&[u8]]) -> (Speaks, Vec<u8>) {
        let (mut client, server) = tokio::io::duplex(4096);
        let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
        let send = async move {
            for piece in pieces {
                client.write_all(&piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let receive = async {
            let (mut opened, speaks) = look(server).await.unwrap();
            let mut all = Vec::new();
            opened.read_to_end(&mut all).await.unwrap();
            (speaks, all)
        };
        tokio::join!(send, receive).1
    }

    #[tokio::test]
    async fn what_is_spoken_is_seen_and_nothing_of_it_is_lost() {
        let cases: [(&[&[u8]], Speaks); 8] = [
            (&[b"GET / HTTP/1.1\r\n\r\n"], Speaks::Http1),
            (&[b"P", b"OST / HTTP/1.1\r\n\r\n"], Speaks::Http1),
            (&[b"PRI * HTTP/1.1\r\n\r\n"], Speaks::Http1),
            (&[PREFACE], Speaks::Http2),
            (&[b"PRI * HT", b"TP/2.0\r\n\r\nSM\r\n", b"\r\nrest"], Speaks::Http2),
            (&[b"PRI"], Speaks::Http1),
            (&[], Speaks::Nothing),
            (&[b"\x16\x03\x01"], Speaks::Http1),
        ];
        for (pieces, want) in cases {
            let (speaks, all) = seen(pieces).await;
            assert_eq!((speaks, all), (want, pieces.concat()), "{pieces:?}");
        }
    }
}
