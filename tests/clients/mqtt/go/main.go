// Eclipse Paho for Go: paho.mqtt.golang (3.1.1) and paho.golang (5).
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/eclipse/paho.golang/paho"
	mqtt "github.com/eclipse/paho.mqtt.golang"
)

type answer struct {
	Present bool     `json:"present"`
	Got     []string `json:"got"`
}

// device is what both libraries can do.
type device interface {
	subscribe(topic string)
	publish(topic, payload string, qos byte, retain bool)
	leave()
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	step, version, address, name := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	time.AfterFunc(40*time.Second, func() { panic("too slow") })
	arrived := make(chan string, 1000)
	var client device
	var said answer
	if version == "5" {
		client, said.Present = five(step, address, name, arrived)
	} else {
		client, said.Present = three(step, address, name, arrived)
	}
	take := func(count int, wanted string) {
		for count > 0 {
			if one := <-arrived; strings.HasPrefix(one, wanted) {
				said.Got = append(said.Got, one)
				count--
			}
		}
	}
	if step == "first" {
		client.subscribe("in/" + name + "/#")
		client.publish("state/"+name, "on", 1, true)
		for qos := byte(0); qos < 3; qos++ {
			for i := 0; i < 10; i++ {
				client.publish(fmt.Sprintf("in/%s/q%d", name, qos), fmt.Sprint(i), qos, false)
			}
		}
		take(30, "in/"+name+"/q")
	} else {
		take(40, "in/"+name+"/later")
		client.subscribe("state/" + name)
		take(1, "state/"+name)
		client.leave()
	}
	check(json.NewEncoder(os.Stdout).Encode(said))
}

type deviceThree struct{ client mqtt.Client }

func three(step, address, name string, arrived chan string) (device, bool) {
	options := mqtt.NewClientOptions().AddBroker(strings.Replace(address, "mqtt:", "tcp:", 1)).SetClientID(name)
	options.SetCleanSession(false).SetProtocolVersion(4).SetAutoReconnect(false)
	options.SetDefaultPublishHandler(func(_ mqtt.Client, message mqtt.Message) {
		arrived <- fmt.Sprintf("%s %s %d", message.Topic(), message.Payload(), message.Qos())
	})
	if step == "first" {
		options.SetWill("will/"+name, "gone", 1, false)
	}
	client := mqtt.NewClient(options)
	token := client.Connect().(*mqtt.ConnectToken)
	token.Wait()
	check(token.Error())
	return deviceThree{client}, token.SessionPresent()
}

func (d deviceThree) subscribe(topic string) {
	token := d.client.Subscribe(topic, 2, nil)
	token.Wait()
	check(token.Error())
}

func (d deviceThree) publish(topic, payload string, qos byte, retain bool) {
	token := d.client.Publish(topic, qos, retain, payload)
	token.Wait()
	check(token.Error())
}

func (d deviceThree) leave() { d.client.Disconnect(250) }

type deviceFive struct{ client *paho.Client }

func five(step, address, name string, arrived chan string) (device, bool) {
	where, err := url.Parse(address)
	check(err)
	conn, err := net.Dial("tcp", where.Host)
	check(err)
	client := paho.NewClient(paho.ClientConfig{Conn: conn, OnPublishReceived: []func(paho.PublishReceived) (bool, error){
		func(received paho.PublishReceived) (bool, error) {
			packet := received.Packet
			arrived <- fmt.Sprintf("%s %s %d", packet.Topic, packet.Payload, packet.QoS)
			return true, nil
		},
	}})
	expiry := uint32(3600)
	connect := &paho.Connect{ClientID: name, KeepAlive: 30, Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry}}
	if step == "first" {
		connect.WillMessage = &paho.WillMessage{Topic: "will/" + name, Payload: []byte("gone"), QoS: 1}
	}
	connack, err := client.Connect(context.Background(), connect)
	check(err)
	return deviceFive{client}, connack.SessionPresent
}

func (d deviceFive) subscribe(topic string) {
	_, err := d.client.Subscribe(context.Background(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: topic, QoS: 2}}})
	check(err)
}

func (d deviceFive) publish(topic, payload string, qos byte, retain bool) {
	_, err := d.client.Publish(context.Background(), &paho.Publish{Topic: topic, Payload: []byte(payload), QoS: qos, Retain: retain})
	check(err)
}

func (d deviceFive) leave() { check(d.client.Disconnect(&paho.Disconnect{})) }
