//! The column types that merge, on every release: as users write them, against a model, and against states that no
//! function makes. `ANTIPHON_SEED` begins the random cases elsewhere, `ANTIPHON_CASES` makes them more.

mod malformed;
mod model;
mod play;
mod usage;

use antiphon_mesh::crdt::SETUP;
use tokio_postgres::Client;

use crate::support::Server;

/// Which node a session speaks for, in place of the mesh's own function.
const NODE: &str = "CREATE OR REPLACE FUNCTION antiphon.node_id() RETURNS smallint LANGUAGE sql STABLE PARALLEL SAFE \
    RETURN nullif(current_setting('test.node', true), '')::smallint";

/// A connection as the first node to a server that has the types.
async fn prepared(server: &Server) -> Client {
    let client = server.client().await;
    client.batch_execute(SETUP).await.expect("the types");
    client.batch_execute(NODE).await.expect("the node's number");
    client.batch_execute("SET test.node = 1").await.expect("a number");
    client
}

/// A number from the environment.
fn given(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Numbers from a seed: `SplitMix64` (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators").
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("it is below a usize")
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}
