// What a path reaches in Go's net/http.
package main

import (
	"io"
	"net/http"
	"os"
)

func main() {
	for pattern, name := range map[string]string{
		"/api/login":         "login",
		"/items/{id}/export": "export",
		"/items/{id}":        "item",
		"/files/{path...}":   "files",
		"/health":            "health",
		"/metrics":           "metrics",
		"/":                  "other",
	} {
		http.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, name) })
	}
	panic(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
