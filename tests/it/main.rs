//! One promise per file, one binary for all: linking DataFusion twenty times is too slow.
//!
//! Most are over real processes of the program; those need it, and SQL to look at its answers.

mod embedding;
mod library;
mod resumed_snapshot;
mod slow_disk;

#[cfg(all(feature = "server", feature = "sql"))]
mod acks;
#[cfg(all(feature = "server", feature = "sql"))]
mod all_killed;
#[cfg(all(feature = "server", feature = "sql"))]
mod api_tokens;
#[cfg(all(feature = "server", feature = "sql"))]
mod arc_clients;
#[cfg(all(feature = "server", feature = "sql"))]
mod auth;
#[cfg(all(feature = "server", feature = "sql"))]
mod backup;
#[cfg(all(feature = "server", feature = "sql"))]
mod bootstrap;
#[cfg(all(feature = "server", feature = "sql"))]
mod ca_rotation;
#[cfg(all(feature = "server", feature = "sql"))]
mod clocks;
#[cfg(all(feature = "server", feature = "sql"))]
mod clones;
#[cfg(all(feature = "server", feature = "sql"))]
mod cluster;
#[cfg(all(feature = "server", feature = "sql", feature = "mdns"))]
mod cut_off;
#[cfg(all(feature = "server", feature = "sql"))]
mod damage;
#[cfg(all(feature = "server", feature = "sql"))]
mod databases;
#[cfg(all(feature = "server", feature = "sql"))]
mod doctor;
#[cfg(all(feature = "server", feature = "sql"))]
mod drain;
#[cfg(all(feature = "server", feature = "sql"))]
mod events;
#[cfg(all(feature = "server", feature = "sql"))]
mod failover;
#[cfg(all(feature = "server", feature = "sql"))]
mod feed;
#[cfg(all(feature = "server", feature = "sql"))]
mod flight;
#[cfg(all(feature = "server", feature = "sql", feature = "mdns"))]
mod forged;
#[cfg(all(feature = "server", feature = "sql"))]
mod full_disk;
#[cfg(all(feature = "server", feature = "sql"))]
mod gateway;
#[cfg(all(feature = "server", feature = "sql"))]
mod gateway_bodies;
#[cfg(all(feature = "server", feature = "sql"))]
mod gateway_removal;
#[cfg(all(feature = "server", feature = "sql"))]
mod graceful;
#[cfg(all(feature = "server", feature = "sql"))]
mod http;
#[cfg(all(feature = "server", feature = "sql", feature = "mdns"))]
mod interfaces;
#[cfg(all(feature = "server", feature = "sql"))]
mod joiner_says;
#[cfg(all(feature = "server", feature = "sql", feature = "mdns"))]
mod mdns;
#[cfg(all(feature = "server", feature = "sql"))]
mod memory;
#[cfg(all(feature = "server", feature = "sql", feature = "mdns"))]
mod moved;
#[cfg(all(feature = "server", feature = "sql", feature = "mdns"))]
mod namespaces;
#[cfg(all(feature = "server", feature = "sql"))]
mod own_ca;
#[cfg(all(feature = "server", feature = "sql"))]
mod partial_writes;
#[cfg(all(feature = "server", feature = "sql"))]
mod paused_writer;
#[cfg(all(feature = "server", feature = "sql"))]
mod process;
#[cfg(all(feature = "server", feature = "sql"))]
mod queries;
#[cfg(all(feature = "server", feature = "sql"))]
mod reads;
#[cfg(all(feature = "server", feature = "sql"))]
mod recover;
#[cfg(all(feature = "server", feature = "sql"))]
mod repair;
#[cfg(all(feature = "server", feature = "sql"))]
mod request_id;
#[cfg(all(feature = "server", feature = "sql"))]
mod roles;
#[cfg(all(feature = "server", feature = "sql"))]
mod series;
#[cfg(all(feature = "server", feature = "sql"))]
mod single_node;
#[cfg(all(feature = "server", feature = "sql"))]
mod snapshot;
#[cfg(all(feature = "server", feature = "sql"))]
mod telegraf;
#[cfg(all(feature = "server", feature = "sql"))]
mod tls;
#[cfg(all(feature = "server", feature = "sql"))]
mod tokens_and_removal;
#[cfg(all(feature = "server", feature = "sql"))]
mod upgrade;
