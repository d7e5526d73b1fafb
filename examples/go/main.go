// Notes, one line of a file each.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

var notes = "notes.txt"

func count() int {
	text, _ := os.ReadFile(notes)
	return bytes.Count(text, []byte("\n"))
}

func respond(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

func add(line []byte) error {
	file, err := os.OpenFile(notes, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = file.Write(append(line, '\n'))
	return err
}

func main() {
	if path := os.Getenv("NOTES"); path != "" {
		notes = path
	}
	http.HandleFunc("GET /api/notes", func(w http.ResponseWriter, _ *http.Request) {
		respond(w, http.StatusOK, map[string]int{"notes": count(), "process": os.Getpid()})
	})
	http.HandleFunc("POST /api/notes", func(w http.ResponseWriter, r *http.Request) {
		line, err := io.ReadAll(r.Body)
		if err == nil {
			err = add(line)
		}
		if err != nil {
			respond(w, http.StatusInternalServerError, map[string]string{"error": err.Error()})
			return
		}
		respond(w, http.StatusCreated, map[string]int{"notes": count(), "process": os.Getpid()})
	})
	http.HandleFunc("GET /api/report", func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(time.Second)
		respond(w, http.StatusOK, map[string]int{"notes": count()})
	})
	http.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })

	// PORT comes from Outrigger.
	server := &http.Server{Addr: "127.0.0.1:" + os.Getenv("PORT"), ReadHeaderTimeout: 10 * time.Second}
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	go func() {
		<-stop.Done()
		server.Shutdown(context.Background())
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		log.Fatal(err)
	}
}
