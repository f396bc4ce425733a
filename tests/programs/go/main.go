// A net/http server as anybody writes it: it counts its requests and says what it is and since when.
package main

import (
	"fmt"
	"log"
	"net/http"
	"runtime"
	"sync/atomic"
	"time"
)

func main() {
	var count atomic.Int64
	born := time.Now().UnixNano()
	http.HandleFunc("/", func(answer http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(answer, "%d %s %d\n", count.Add(1), runtime.Version(), born)
	})
	log.Fatal(http.ListenAndServe(":8080", nil))
}
