//! One request in, one answer out: authorization and dispatch.

use futures::StreamExt;
use http::header::CONTENT_TYPE;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::answer::{Answer, finish, full, json, not_found, text};
use super::identity::Caller;
use super::log_stream::{Exit, LogStream, QUEUE_CHUNKS};
use super::route::{NoRoute, Route, Target};
use super::{Context, exec, metrics, port_forward, query, stats};

/// Answers a request of a caller whose certificate has been verified.
pub async fn answer(context: Context, caller: &Caller, request: Request<Incoming>) -> Answer {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let answer = match Route::parse(&method, &path) {
        Err(NoRoute::NotFound) => text(StatusCode::NOT_FOUND, "404 page not found"),
        Err(NoRoute::MethodNotAllowed) => text(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed"),
        Ok(_) if !caller.may_call() => forbidden(caller, &method, &path),
        Ok(route) => dispatch(context, route, request).await,
    };
    tracing::debug!(user = caller.user, %method, path, status = answer.status().as_u16(), "kubelet API");
    answer
}

async fn dispatch(context: Context, route: Route, request: Request<Incoming>) -> Answer {
    match route {
        Route::Healthz => text(StatusCode::OK, "ok"),
        Route::Pods => json(&pod_list(&context.pods.list())),
        Route::RunningPods => json(&stats::running_pods(&context.runtime.list())),
        Route::Metrics => metrics_page(&context),
        Route::StatsSummary => json(&stats::summary(&context).await),
        Route::Configz => json(&serde_json::json!({"kubeletconfig": &*context.settings})),
        Route::ContainerLogs(target) => container_logs(context, &target, request.uri().query()).await,
        Route::Exec(target) => exec::exec(context, &target, request),
        Route::Attach(target) => exec::attach(context, &target, request),
        Route::PortForward(target) => port_forward::forward(context, &target, request),
    }
}

fn metrics_page(context: &Context) -> Answer {
    match metrics::render(context) {
        Ok(page) => {
            finish(Response::builder().header(CONTENT_TYPE, metrics::CONTENT_TYPE), full(page.into_bytes()))
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("encode the metrics: {error}")),
    }
}

fn forbidden(caller: &Caller, method: &http::Method, path: &str) -> Answer {
    let Caller { user, .. } = caller;
    let message = format!("Forbidden (user={user}, verb={}, path={path})", method.as_str().to_lowercase());
    tracing::warn!(user, %method, path, "refused a caller of the kubelet API");
    text(StatusCode::FORBIDDEN, message)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PodList<'a, T> {
    kind: &'static str,
    api_version: &'static str,
    metadata: serde_json::Map<String, serde_json::Value>,
    items: &'a [T],
}

fn pod_list<T: Serialize>(items: &[T]) -> PodList<'_, T> {
    PodList { kind: "PodList", api_version: "v1", metadata: serde_json::Map::new(), items }
}

async fn container_logs(context: Context, target: &Target, query: Option<&str>) -> Answer {
    let options = match query::log_options(query.unwrap_or_default(), Timestamp::now()) {
        Ok(options) => options,
        Err(error) => return text(StatusCode::BAD_REQUEST, error.to_string()),
    };
    // Before the container is looked up: its exit must not fall in between.
    let events = context.runtime.events();
    let name = Some(target.container.as_str());
    let container = match context.pods.container(&target.namespace, &target.pod, name, options.previous) {
        Ok(container) => container,
        Err(error) => return not_found(&error),
    };
    let exit = options.follow.then(|| {
        Exit::of_container(context.runtime.clone(), events, container.id.clone(), container.running)
    });
    match LogStream::open(&container.log_path, options, exit).await {
        Ok(stream) => {
            let (sender, chunks) = mpsc::channel(QUEUE_CHUNKS);
            tokio::spawn(stream.run(sender));
            let frames = ReceiverStream::new(chunks).map(|chunk| chunk.map(Frame::data));
            let answer = Response::builder().header(CONTENT_TYPE, "text/plain");
            finish(answer, StreamBody::new(frames).boxed_unsync())
        }
        Err(error) => {
            let path = container.log_path.display();
            let message = format!("failed to open log file \"{path}\": {error}");
            text(StatusCode::INTERNAL_SERVER_ERROR, message)
        }
    }
}
