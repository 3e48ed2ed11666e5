// What amqp091-go users do, against the AMQP port in the first argument. Exits non-zero at the first broken promise.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func check(err error, what string) {
	if err != nil {
		fmt.Fprintln(os.Stderr, what, err)
		os.Exit(1)
	}
}

func must(ok bool, what ...any) {
	if !ok {
		fmt.Fprintln(os.Stderr, what...)
		os.Exit(1)
	}
}

func next(deliveries <-chan amqp.Delivery) amqp.Delivery {
	select {
	case d, ok := <-deliveries:
		must(ok, "deliveries closed")
		return d
	case <-time.After(10 * time.Second):
		must(false, "no delivery in time")
	}
	panic("unreachable")
}

func refused(c *amqp.Connection, code int, operation func(*amqp.Channel) error) {
	ch, err := c.Channel()
	check(err, "channel")
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	err = operation(ch)
	if err == nil {
		err = <-closed
	}
	e, ok := err.(*amqp.Error)
	must(ok && e.Code == code, "expected", code, "got", err)
}

func main() {
	url := "amqp://guest:guest@127.0.0.1:" + os.Args[1] + "/"
	var socket net.Conn
	c, err := amqp.DialConfig(url, amqp.Config{Heartbeat: 10 * time.Second, Dial: func(network, addr string) (net.Conn, error) {
		conn, err := net.Dial(network, addr)
		socket = conn
		return conn, err
	}})
	check(err, "dial")
	ch, err := c.Channel()
	check(err, "channel")
	check(ch.Confirm(false), "confirm")
	_, err = ch.QueueDeclare("go", true, false, false, false, nil)
	check(err, "declare")
	_, err = ch.QueuePurge("go", false)
	check(err, "purge")
	check(ch.QueueBind("go", "go.*.value", "amq.topic", false, nil), "bind")
	headers := amqp.Table{"n": int32(7), "deep": amqp.Table{"list": []any{int32(1), "x", true}}}
	ctx := context.Background()
	for i := range 6 {
		p, err := ch.PublishWithDeferredConfirmWithContext(ctx, "amq.topic", fmt.Sprintf("go.%d.value", i), true, false,
			amqp.Publishing{Body: []byte{byte(i)}, Headers: headers, DeliveryMode: amqp.Persistent})
		check(err, "publish")
		must(p.Wait(), "not confirmed")
	}
	check(ch.Qos(3, 0, false), "qos")
	deliveries, err := ch.Consume("go", "tag", false, false, false, false, nil)
	check(err, "consume")
	for i := range 3 {
		d := next(deliveries)
		must(d.Body[0] == byte(i) && !d.Redelivered, "first", i, d.Body, d.Redelivered)
		must(d.Headers["n"] == int32(7), "headers", d.Headers)
		if i == 0 {
			check(d.Ack(false), "ack")
		}
	}
	socket.Close()

	c, err = amqp.Dial(url)
	check(err, "dial")
	ch, err = c.Channel()
	check(err, "channel")
	// The broker may see the end of one connection after the beginning of another.
	for ready := 0; ready < 5; {
		q, err := ch.QueueDeclarePassive("go", true, false, false, false, nil)
		check(err, "inspect")
		ready = q.Messages
	}
	deliveries, err = ch.Consume("go", "tag", false, false, false, false, nil)
	check(err, "consume")
	for i := 1; i < 6; i++ {
		d := next(deliveries)
		must(d.Body[0] == byte(i) && (i > 2 || d.Redelivered), "again", i, d.Body, d.Redelivered)
		check(d.Ack(true), "ack")
	}
	refused(c, 404, func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclarePassive("none", true, false, false, false, nil)
		return err
	})
	refused(c, 403, func(ch *amqp.Channel) error {
		return ch.ExchangeDeclare("amq.none", "direct", true, false, false, false, nil)
	})
	refused(c, 406, func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclare("go", false, false, false, false, nil)
		return err
	})
	refused(c, 406, func(ch *amqp.Channel) error { return ch.Ack(99, false) })
	_, err = ch.QueueDelete("go", false, false, false)
	check(err, "delete")
	check(c.Close(), "close")
	fmt.Println("ok")
}
