//! temporary
#[path = "api_it/fixture.rs"]
#[allow(dead_code)]
mod fixture;
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn speed() {
    let s = fixture::Served::new(fixture::view("n1")).await;
    println!("PORT {}", s.address.port());
    std::fs::write("/tmp/fullapi/speed.port", s.address.port().to_string()).unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(45);
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(100));
    while std::time::Instant::now() < end { tick.tick().await; s.view.send_replace(std::sync::Arc::new(fixture::view("n1"))); }
}
