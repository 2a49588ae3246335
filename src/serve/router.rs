//! The routes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody, to_bytes};
use axum::extract::{Request as HttpRequest, State};
use axum::http::{HeaderMap, HeaderValue, Response, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::routing::{get, post};
use serde_json::json;
use tokio::sync::mpsc::unbounded_channel;

use super::access::Access;
use super::answers::{Head, Usage};
use super::errors::{ApiError, ApiResult};
use super::metrics::{self, Metrics};
use super::order::{CancelOnDrop, Command, Order, Queue, Reply};
use super::stream::EventStream;
use super::wire::Asked;
use crate::engine::{Completion, Origin, Request, RequestOptions, Sampling};
use crate::hash::sha256;
use crate::stopwatch;

/// How long a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Names a step, so that scripts and records can.
const STEP: &str = "x-flowbench-step";

/// The step of a request that names none.
const NO_STEP: &str = "chat";

/// What the handlers share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) access: Access,
    /// The model's name.
    pub(super) model: String,
    /// Other names that it is known by.
    pub(super) aliases: Vec<String>,
    /// Whether the engine takes prompts without a chat template.
    pub(super) takes_text: bool,
    /// Tokens of an answer, for requests that do not say; `None`: as many as fit.
    pub(super) max_tokens: Option<usize>,
    /// Seeds of requests without one are made from it.
    pub(super) seed: u64,
    pub(super) max_body: usize,
    pub(super) started: u64,
    pub(super) queue: Queue,
    pub(super) metrics: Arc<Metrics>,
    pub(super) commands: Sender<Command>,
    pub(super) numbers: AtomicU64,
}

type SharedState = State<Arc<Shared>>;

pub(super) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(plain))
        .route("/v1/models", get(models))
        .route("/v1/models/{*model}", get(model))
        .route("/health", get(health))
        .route("/metrics", get(measured))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(Arc::clone(&shared), admit))
        .with_state(shared)
}

/// Seconds since 1970.
pub(super) fn unix_seconds() -> u64 {
    (stopwatch::wall_ms() / 1e3) as u64
}

/// Checks host and key, and counts the response.
async fn admit(State(shared): SharedState, request: HttpRequest, next: Next) -> Response<Body> {
    let label = match request.uri().path() {
        path @ ("/v1/chat/completions"
        | "/v1/completions"
        | "/v1/models"
        | "/health"
        | "/metrics") => path.to_owned(),
        _ => "other".to_owned(),
    };
    let headers = request.headers();
    let allowed = shared.access.check_host(headers).and_then(|()| {
        match label.as_str() {
            // Whether the server lives is no secret.
            "/health" => Ok(()),
            _ => shared.access.check_key(headers),
        }
    });
    let response = match allowed {
        Ok(()) => next.run(request).await,
        Err(error) => error.response(),
    };
    (shared.metrics).responded(&label, response.status().as_u16());
    response
}

async fn unknown(request: HttpRequest) -> Response<Body> {
    ApiError::unknown_url(request.method().as_str(), request.uri().path()).response()
}

async fn wrong_method(request: HttpRequest) -> Response<Body> {
    ApiError::wrong_method(request.method().as_str(), request.uri().path()).response()
}

async fn health() -> Response<Body> {
    json_response("{\"status\":\"ok\"}".to_owned())
}

async fn measured(State(shared): SharedState) -> Response<Body> {
    let mut response = Response::new(Body::from(shared.metrics.text(shared.queue.held())));
    let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

async fn models(State(shared): SharedState) -> Response<Body> {
    let names = [&shared.model].into_iter().chain(&shared.aliases);
    let data: Vec<_> = names.map(|name| shared.card(name)).collect();
    json_response(json!({"object": "list", "data": data}).to_string())
}

async fn model(State(shared): SharedState, request: HttpRequest) -> Response<Body> {
    let path = request.uri().path();
    let name = path.strip_prefix("/v1/models/").unwrap_or(path);
    match shared.check_model(name) {
        Ok(()) => json_response(shared.card(name).to_string()),
        Err(error) => error.response(),
    }
}

async fn chat(State(shared): SharedState, request: HttpRequest) -> Response<Body> {
    let headers = request.headers().clone();
    let answered = async {
        let body = body_of(request, shared.max_body).await?;
        answer(&shared, &headers, Asked::chat(&body)?).await
    };
    answered.await.unwrap_or_else(|error| error.response())
}

async fn plain(State(shared): SharedState, request: HttpRequest) -> Response<Body> {
    let headers = request.headers().clone();
    let answered = async {
        let body = body_of(request, shared.max_body).await?;
        let asked = Asked::plain(&body)?;
        if !shared.takes_text {
            return Err(ApiError::unsupported(
                "prompt",
                "'/v1/completions' is not supported with this engine, which takes conversations only: use \
                 /v1/chat/completions.",
            ));
        }
        answer(&shared, &headers, asked).await
    };
    answered.await.unwrap_or_else(|error| error.response())
}

/// The body of a request, within the limits of size and time.
async fn body_of(request: HttpRequest, most: usize) -> ApiResult<Bytes> {
    let kind = request.headers().get(header::CONTENT_TYPE);
    let kind = kind.map(|kind| String::from_utf8_lossy(kind.as_bytes()).to_ascii_lowercase());
    // Browsers ask the server first before they send JSON to another site, and get no permission.
    let is_json =
        |kind: String| kind.split(';').next().unwrap_or_default().trim() == "application/json";
    if !kind.is_some_and(is_json) {
        return Err(ApiError::not_json());
    }
    let body = request.into_body();
    if body.size_hint().lower() > most as u64 {
        return Err(ApiError::large_body(most));
    }
    match tokio::time::timeout(BODY_TIME, to_bytes(body, most)).await {
        Err(_) => Err(ApiError::slow_body()),
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) => {
            use std::error::Error as _;
            // Of the two causes, only a connection that broke off comes from hyper.
            let is_hyper = (error.source()).is_some_and(|source| source.is::<hyper::Error>());
            Err(match is_hyper {
                true => ApiError::invalid(format!("The body did not arrive: {error}.")),
                false => ApiError::large_body(most),
            })
        }
    }
}

fn json_response(body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

impl Shared {
    fn card(&self, name: &str) -> serde_json::Value {
        json!({"id": name, "object": "model", "created": self.started, "owned_by": "flowbench"})
    }

    fn check_model(&self, name: &str) -> ApiResult<()> {
        let mut names = [&self.model].into_iter().chain(&self.aliases);
        match names.any(|known| known == name) {
            true => Ok(()),
            false => Err(ApiError::unknown_model(name, &self.model)),
        }
    }

    /// The seeds of the choices: one after the other from the request's own, which without one differs from
    /// request to request.
    fn seeds(&self, asked: &Asked, number: u64) -> Vec<u64> {
        let first = asked.seed.unwrap_or_else(|| {
            let text = format!("{}/{number}", self.seed);
            u64::from_str_radix(&sha256(text.as_bytes())[..16], 16).unwrap_or(number)
        });
        (0..asked.choices as u64)
            .map(|choice| first.wrapping_add(choice))
            .collect()
    }

    fn request(&self, asked: &Asked, number: u64, headers: &HeaderMap) -> Request {
        let step = headers.get(STEP).map(HeaderValue::as_bytes);
        let step = step.map_or_else(
            || NO_STEP.into(),
            |step| String::from_utf8_lossy(step).into_owned(),
        );
        Request {
            origin: Origin {
                flow: usize::try_from(number).unwrap_or(usize::MAX),
                row: String::new(),
                step,
                sample: 1,
            },
            messages: Arc::clone(&asked.messages),
            max_tokens: asked.max_tokens.or(self.max_tokens).unwrap_or(usize::MAX),
            ignore_eos: asked.ignore_eos,
            sampling: Sampling {
                seed: 0,
                ..asked.sampling
            },
            options: RequestOptions {
                stop: Arc::clone(&asked.stop),
                stream_text: asked.stream,
                plain_prompt: !asked.is_chat,
            },
        }
    }
}

/// Has the engine answer.
async fn answer(shared: &Shared, headers: &HeaderMap, asked: Asked) -> ApiResult<Response<Body>> {
    shared.check_model(&asked.model)?;
    let permit = shared.queue.enter(asked.choices).map_err(ApiError::busy)?;
    let number = shared.numbers.fetch_add(1, Ordering::Relaxed);
    let (sender, mut replies) = unbounded_channel();
    let order = Order {
        number,
        request: shared.request(&asked, number, headers),
        seeds: shared.seeds(&asked, number),
        replies: sender,
        permit,
    };
    let mut cancel = CancelOnDrop::new(number, shared.commands.clone());
    let sent = shared.commands.send(Command::Start(Box::new(order)));
    sent.map_err(|_| ApiError::closing())?;
    let created = unix_seconds();
    let prefix = if asked.is_chat { "chatcmpl" } else { "cmpl" };
    let head = Head {
        id: format!("{prefix}-{:x}-{number}", shared.started),
        created,
        model: asked.model,
        is_chat: asked.is_chat,
    };
    // Whether the prompt fits is known once the engine has it.
    match replies.recv().await {
        Some(Reply::Accepted) => {}
        Some(Reply::Failed(error)) => {
            cancel.disarm();
            return Err(error);
        }
        _ => return Err(ApiError::closing()),
    }
    if asked.stream {
        let stream = EventStream::new(head, asked.choices, asked.include_usage, replies, cancel);
        let mut response = Response::new(Body::new(stream));
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static("text/event-stream");
        headers.insert(header::CONTENT_TYPE, kind);
        let no_cache = HeaderValue::from_static("no-cache");
        headers.insert(header::CACHE_CONTROL, no_cache);
        return Ok(response);
    }
    let mut usage = Usage::default();
    let mut completions: Vec<Option<Completion>> = vec![None; asked.choices];
    let mut left = asked.choices;
    while left > 0 {
        match replies.recv().await {
            Some(Reply::Finished { choice, completion }) => {
                usage.add(choice, &completion);
                completions[choice] = Some(completion);
                left -= 1;
            }
            Some(Reply::Failed(error)) => {
                cancel.disarm();
                return Err(error);
            }
            Some(Reply::Accepted | Reply::Text { .. }) => {}
            None => return Err(ApiError::closing()),
        }
    }
    cancel.disarm();
    let completions: Vec<Completion> = completions.into_iter().flatten().collect();
    Ok(json_response(head.whole(&completions, usage)))
}
