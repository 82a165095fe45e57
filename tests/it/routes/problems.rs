//! The pages that problem types lead to.

use explaind::api::problem::Kind;

use crate::service::Service;

#[tokio::test]
async fn every_problem_type_leads_to_its_page() {
    let service = Service::bundled();
    for kind in Kind::ALL {
        let row = kind.row();
        let page = service.get(&format!("/problems/{}", row.slug)).await.good();
        assert_eq!((&page["title"], &page["status"]), (&row.title.into(), &row.status.as_u16().into()));
    }
    assert_eq!(service.get("/problems/bad-weather").await.refusal(), "404 unknown-route");
}
