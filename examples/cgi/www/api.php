<?php
// Notes, one line of a file each.
$notes = getenv("NOTES");

function respond(int $status, array $body): void
{
    http_response_code($status);
    header("Content-Type: application/json");
    echo json_encode($body);
}

function count_of(string $file): int
{
    return file_exists($file) ? count(file($file)) : 0;
}

switch ($_SERVER["REQUEST_METHOD"] . " " . ($_SERVER["PATH_INFO"] ?? "")) {
    case "GET /notes":
        respond(200, ["notes" => count_of($notes), "process" => getmypid()]);
        break;
    case "POST /notes":
        file_put_contents($notes, file_get_contents("php://input") . "\n", FILE_APPEND | LOCK_EX);
        respond(201, ["notes" => count_of($notes), "process" => getmypid()]);
        break;
    case "GET /report":
        sleep(1);
        respond(200, ["notes" => count_of($notes)]);
        break;
    default:
        respond(404, ["error" => "not found"]);
}
